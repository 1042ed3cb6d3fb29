package api

import (
	"sync"
	"time"
)

const (
	// rate requests a second and burst at once are what one session or address
	// may send.
	rate  = 50
	burst = 200
	// keysMax is how many of them are remembered.
	keysMax = 100_000
)

// limiter is a token bucket per key.
type limiter struct {
	mu      sync.Mutex
	buckets map[string]bucket
}

type bucket struct {
	tokens float64
	at     time.Time
}

// take reports whether the key may send one more. The empty key always may.
func (l *limiter) take(key string, now time.Time) bool {
	if key == "" {
		return true
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.buckets == nil || len(l.buckets) >= keysMax {
		l.buckets = map[string]bucket{}
	}
	b, ok := l.buckets[key]
	if !ok {
		b = bucket{tokens: burst, at: now}
	}
	// A clock that was put back gives nothing and takes nothing.
	if passed := now.Sub(b.at).Seconds(); passed > 0 {
		b.tokens = min(burst, b.tokens+passed*rate)
	}
	b.at = now
	if b.tokens < 1 {
		l.buckets[key] = b
		return false
	}
	b.tokens--
	l.buckets[key] = b
	return true
}
