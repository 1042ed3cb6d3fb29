package mtls

import "time"

// SetNow replaces the clock.
func (s *Store) SetNow(now func() time.Time) { s.now = now }
