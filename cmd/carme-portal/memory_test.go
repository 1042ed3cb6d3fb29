package main

import "testing"

func TestMemory_garbage_is_bounded_by_what_lives(t *testing.T) {
	for live, want := range map[uint64]int{0: 400, 1 << 20: 400, 12 << 20: 400, 48 << 20: 100, 96 << 20: 50, 1 << 30: 30} {
		if got := percent(live); got != want {
			t.Errorf("with %d MB alive %d per cent, want %d", live>>20, got, want)
		}
	}
}
