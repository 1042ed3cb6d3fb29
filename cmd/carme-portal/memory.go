package main

import (
	"context"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

const (
	// garbage is how much may lie about before the collector runs, in bytes, as
	// long as that is between leastPercent and mostPercent of what lives. With
	// little alive, requests are cheaper by a third than with Go's 100 per cent;
	// with ten thousand idle websockets, the same percentage would cost five
	// times their memory.
	garbage      = 48 << 20
	leastPercent = 30
	mostPercent  = 400
	// memory is from where on the collector runs whatever it costs.
	memory = 1 << 30
	// tidyEvery is how often the collector is set anew, returnEvery how often at
	// most memory is given back to the system, and worthIt how much that must be.
	tidyEvery   = 2 * time.Second
	returnEvery = 20 * time.Second
	worthIt     = 12 << 20
)

// percent is how much garbage there may be for so much that lives, in bytes.
func percent(live uint64) int {
	return int(min(max(garbage*100/max(live, 1), leastPercent), mostPercent))
}

// economise keeps the collector fit for what lives until ctx ends, unless the
// unit sets it.
func economise(ctx context.Context) {
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(memory)
	}
	if os.Getenv("GOGC") != "" {
		return
	}
	debug.SetGCPercent(mostPercent)
	go tidy(ctx)
}

func tidy(ctx context.Context) {
	tick := time.NewTicker(tidyEvery)
	defer tick.Stop()
	now, returned := mostPercent, time.Time{}
	var collected uint64
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		samples := []metrics.Sample{
			{Name: "/gc/heap/live:bytes"}, {Name: "/memory/classes/heap/objects:bytes"}, {Name: "/memory/classes/heap/free:bytes"}, {Name: "/gc/cycles/total:gc-cycles"},
		}
		metrics.Read(samples)
		live, objects, free, cycles := samples[0].Value.Uint64(), samples[1].Value.Uint64(), samples[2].Value.Uint64(), samples[3].Value.Uint64()
		if live == 0 { // never collected: what the start has left
			debug.FreeOSMemory()
			continue
		}
		// A process that collects all the time is busy, and reuses what it has.
		quiet := cycles <= collected+1
		collected = cycles
		if want := percent(live); want*10 < now*9 || want*9 > now*10 {
			debug.SetGCPercent(want)
			now = want
		}
		if quiet && objects-min(live, objects)+free > worthIt && time.Since(returned) > returnEvery {
			debug.FreeOSMemory()
			returned = time.Now()
		}
	}
}
