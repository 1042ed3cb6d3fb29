package core

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/carme-hpc/carme/internal/wire"
)

func TestGPUIndexesAreReadAsSlurmWritesThem(t *testing.T) {
	cases := map[string]struct {
		detail string
		want   []int
	}{
		"nothing":          {"", nil},
		"one":              {"gpu:1(IDX:2)", []int{2}},
		"typed":            {"gpu:a100:2(IDX:0-1)", []int{0, 1}},
		"two types":        {"gpu:l40s:1(IDX:2),gpu:a100:1(IDX:0)", []int{0, 2}},
		"holes":            {"gpu:a100:4(IDX:0-1,4,6)", []int{0, 1, 4, 6}},
		"none on the node": {"gpu:a100:0(IDX:N/A)", nil},
		"empty list":       {"gpu:0(IDX:)", nil},
		"others before":    {"craynetwork:1,nic:2(IDX:0-1),gpu:1(IDX:3)", []int{3}},
		"others behind":    {"gpu:1(IDX:3),license:4(CNT:4),fpga:1", []int{3}},
		"only others":      {"craynetwork:3", nil},
		"a name like it":   {"gpumem:7(IDX:1)", nil},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			got, err := gpuIndexes(c.detail)
			if err != nil {
				t.Fatal(err)
			}
			if all := slices.Sorted(maps.Keys(got)); !slices.Equal(all, c.want) {
				t.Errorf("%q has the indexes %v, not %v", c.detail, all, c.want)
			}
		})
	}
}

func TestGPUIndexesThatCannotBeReadAreRefused(t *testing.T) {
	cases := map[string]struct{ detail, says string }{
		"no list":       {"gpu:2", "cannot read"},
		"not closed":    {"gpu:2(IDX:0-1", "cannot read"},
		"a count":       {"gpu:2(CNT:2)", "no list of indexes"},
		"no number":     {"gpu:2(IDX:a)", "invalid syntax"},
		"negative":      {"gpu:2(IDX:-1)", "invalid syntax"},
		"backwards":     {"gpu:2(IDX:3-1)", "no range"},
		"endless":       {"gpu:2(IDX:0-4000000000)", "no range"},
		"list of other": {"gpu:2,nic:1(IDX:0)", "cannot read"},
		"shards":        {"gpu:0(IDX:),shard:a100:2(2/8)", "share a GPU"},
		"MPS":           {"mps:50(50/100)", "share a GPU"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if got, err := gpuIndexes(c.detail); err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%q gives %v and the error %v, not one with %q", c.detail, got, err, c.says)
			}
		})
	}
}

// answer is the plugin's about a node with two GPUs and one with a partition.
func answer(gres string) *wire.Record {
	rec := ofType("given")
	rec.Add("gres", gres)
	for _, d := range []string{"0 195:0", "1 195:1", "1 238:9", "2 195:2", "0 231:0"} {
		rec.Add("device", d)
	}
	return rec
}

func TestAnAnswerThatIsNotSureIsAnError(t *testing.T) {
	unsure := answer("gpu:1(IDX:0)")
	unsure.Add("unknown", "slurmctld does not answer")
	broken := answer("gpu:1(IDX:0)")
	broken.Add("device", "nvidia0")
	for name, rec := range map[string]*wire.Record{"unsure": unsure, "broken": broken, "empty": ofType("given")} {
		t.Run(name, func(t *testing.T) {
			if g, err := readGiven(rec); err == nil {
				t.Errorf("it is taken as %+v", g)
			}
		})
	}
}

func TestTheKernelAndSlurmAreBroughtTogether(t *testing.T) {
	gpu := func(minor uint32, open bool) candidate {
		return candidate{path: "/dev/nvidia" + string(rune('0'+minor)), id: deviceID{195, minor}, parent: -1, open: open}
	}
	part := func(minor uint32, parent int, open bool) candidate {
		return candidate{path: "/dev/nvidia-caps/x", id: deviceID{238, minor}, parent: parent, open: open}
	}
	open := []candidate{gpu(0, true), gpu(1, true), gpu(2, true)}
	cases := map[string]struct {
		gres      string
		constrain string
		all       []candidate
		own       []bool
		deny      []int
		says      string
	}{
		"one of three":         {"gpu:1(IDX:1)", constrainNo, open, []bool{false, true, false}, []int{0, 2}, ""},
		"none":                 {"", constrainNo, open, []bool{false, false, false}, []int{0, 1, 2}, ""},
		"all":                  {"gpu:3(IDX:0-2)", constrainNo, open, []bool{true, true, true}, nil, ""},
		"all, with Slurm's":    {"gpu:3(IDX:0-2)", constrainYes, open, []bool{true, true, true}, nil, ""},
		"all, not told":        {"gpu:3(IDX:0-2)", constrainUnknown, open, []bool{true, true, true}, nil, ""},
		"closed already":       {"gpu:1(IDX:0)", constrainNo, []candidate{gpu(0, true), gpu(1, false)}, []bool{true, false}, nil, ""},
		"own one is closed":    {"gpu:1(IDX:0)", constrainNo, []candidate{gpu(0, false), gpu(1, true)}, nil, nil, "does not let it be opened"},
		"open despite Slurm's": {"gpu:1(IDX:0)", constrainYes, open, nil, nil, "list it in gres.conf"},
		"not told":             {"gpu:1(IDX:0)", constrainUnknown, open, nil, nil, "set ConstrainDevices=yes"},
		"not in gres.conf":     {"gpu:1(IDX:0)", constrainNo, []candidate{gpu(0, true), gpu(3, true)}, []bool{true, false}, []int{1}, ""},
		"own part":             {"gpu:1(IDX:1)", constrainNo, []candidate{gpu(1, true), part(9, 0, true)}, []bool{true, true}, nil, ""},
		"foreign part":         {"gpu:1(IDX:0)", constrainNo, []candidate{gpu(0, true), gpu(1, true), part(9, 1, true)}, []bool{true, false, false}, []int{1, 2}, ""},
		"part of no list":      {"gpu:1(IDX:1)", constrainNo, []candidate{gpu(1, true), part(7, 0, true)}, []bool{true, true}, nil, ""},
		"index of a NIC":       {"nic:1(IDX:0)", constrainNo, []candidate{gpu(0, true)}, []bool{false}, []int{0}, ""},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			g, err := readGiven(answer(c.gres))
			if err != nil {
				t.Fatal(err)
			}
			v, err := judge(c.all, g, c.constrain)
			if c.says != "" {
				if err == nil || !strings.Contains(err.Error(), c.says) {
					t.Fatalf("the error is %v, not one with %q", err, c.says)
				}
				return
			}
			if err != nil || !slices.Equal(v.own, c.own) || !slices.Equal(v.deny, c.deny) {
				t.Errorf("own %v, to deny %v, error %v; want %v and %v", v.own, v.deny, err, c.own, c.deny)
			}
		})
	}
}
