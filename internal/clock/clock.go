package clock

import "time"

// Clock returns the time now.
type Clock func() time.Time

// Real is the machine's clock.
func Real() time.Time { return time.Now() }
