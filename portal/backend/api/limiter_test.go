package api

import (
	"testing"
	"time"
)

func TestLimiter_gives_each_a_burst_and_then_so_many_a_second(t *testing.T) {
	var l limiter
	now := time.Now()
	taken := func(key string) (n int) {
		for n < 2*burst && l.take(key, now) {
			n++
		}
		return n
	}
	if n := taken("a"); n != burst {
		t.Errorf("%d at once", n)
	}
	if n := taken("b"); n != burst {
		t.Errorf("%d at once for another", n)
	}
	now = now.Add(time.Second)
	if n := taken("a"); n != rate {
		t.Errorf("%d a second later", n)
	}
	now = now.Add(-time.Hour)
	if n := taken("a"); n != 0 {
		t.Errorf("a clock put back gives %d", n)
	}
	if !l.take("", now) {
		t.Error("Carme's own daemons are limited")
	}
}

func TestNetwork_is_one_for_all_addresses_of_a_host(t *testing.T) {
	for host, want := range map[string]string{
		"192.0.2.1": "192.0.2.1", "::ffff:192.0.2.1": "192.0.2.1", "2001:db8::1": "2001:db8::/64", "2001:db8::ffff:1": "2001:db8::/64",
		"2001:db8:0:1::1": "2001:db8:0:1::/64", "fe80::1%eth0": "fe80::/64", "?": "?",
	} {
		if got := network(host); got != want {
			t.Errorf("%s counts as %s", host, got)
		}
	}
}
