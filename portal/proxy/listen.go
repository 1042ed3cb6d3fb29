package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"time"
)

// listener gives out TLS connections that can be made quiet.
type listener struct {
	net.Listener
	config *tls.Config
}

// Accept implements net.Listener. The handshake is the server's, which has a
// deadline for it.
func (l *listener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		quiet, err := newQuiet(conn)
		if err != nil {
			_ = conn.Close() // it is of no use
			continue
		}
		return tls.Server(quiet, l.config), nil
	}
}

const (
	headPatience = 10 * time.Second
	idlePatience = 2 * time.Minute
	headBytes    = 1 << 20
	// drainFor is how long requests under way may take to end. With systemd's
	// socket, browsers wait that long for the next portal.
	drainFor = 5 * time.Second
)

// sealing are the suites of TLS 1.2 that encrypt and authenticate in one, with a
// fresh key for each connection. Those of TLS 1.3 all do.
func sealing() []uint16 {
	return []uint16{
		tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
		tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
		tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
	}
}

// Serve serves the handler over TLS, HTTP/2 and 1.1, on the listener until ctx
// ends; then it takes no more requests, and finishes those under way.
func Serve(ctx context.Context, tcp net.Listener, certificate *tls.Config, handler http.Handler, log *slog.Logger) error {
	config := certificate.Clone()
	config.NextProtos = []string{"h2", "http/1.1"}
	config.MinVersion = tls.VersionTLS12
	config.CipherSuites = sealing()
	server := &http.Server{
		Handler: handler, TLSConfig: config, ReadHeaderTimeout: headPatience, IdleTimeout: idlePatience, MaxHeaderBytes: headBytes,
		ConnContext:                  withConn,
		DisableGeneralOptionsHandler: true, // even OPTIONS * is for a host
		ErrorLog:                     slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams: 250, SendPingTimeout: 30 * time.Second, PingTimeout: 15 * time.Second, WriteByteTimeout: writePatience,
		},
	}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(&listener{tcp, config}) }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	late, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainFor)
	defer cancel()
	err := server.Shutdown(late)
	if errors.Is(err, context.DeadlineExceeded) {
		return server.Close() // long polls and event streams: browsers come again
	}
	return err
}
