package api

import (
	"net/netip"
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

// network is the address, or the network that one household or host has in IPv6:
// whoever has that has as many addresses as there are buckets.
func network(host string) string {
	addr, err := netip.ParseAddr(host)
	if err != nil {
		return host
	}
	addr = addr.Unmap().WithZone("")
	if addr.Is6() {
		if p, err := addr.Prefix(64); err == nil {
			return p.String()
		}
	}
	return addr.String()
}

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
