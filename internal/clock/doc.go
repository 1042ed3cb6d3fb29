// Package clock tells the time, so that a test can.
package clock
