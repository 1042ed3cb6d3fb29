package jobs

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/carme-hpc/carme/internal/wire/api"
)

func TestJobs_of_one_second_are_in_the_order_of_their_numbers(t *testing.T) {
	at := time.Date(2026, 1, 2, 10, 0, 0, 0, time.UTC)
	want := []string{"", "110", "12_[11-20%1]", "12_10", "12_9", "12_2", "9", "8"}
	jobs := make([]api.Job, 0, len(want))
	for _, id := range []string{"9", "12_10", "110", "8", "12_2", "", "12_[11-20%1]", "12_9"} {
		jobs = append(jobs, api.Job{ID: id, Submitted: at})
	}
	slices.SortStableFunc(jobs, func(a, b api.Job) int {
		if newer(a, b) {
			return -1
		}
		return 1
	})
	got := make([]string, 0, len(jobs))
	for _, job := range jobs {
		got = append(got, job.ID)
	}
	if !slices.Equal(got, want) {
		t.Errorf("%v", got)
	}
	if !newer(api.Job{ID: "1", Submitted: at.Add(time.Second)}, api.Job{ID: "2", Submitted: at}) {
		t.Error("the number counts before the time")
	}
}

func TestName_is_counted_in_characters(t *testing.T) {
	for name, wrong := range map[string]bool{strings.Repeat("ü", nameMax): false, strings.Repeat("ü", nameMax+1): true, "a\nb": true, "": false} {
		found := wrongs{}
		checkWords(&api.Start{Name: name}, &api.Offer{}, found)
		if _, got := found["name"]; got != wrong {
			t.Errorf("%q: %v", name, found)
		}
	}
}
