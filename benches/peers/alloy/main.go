// Alloy's own pyroscope.receive_http and pyroscope.write, wired as an Alloy configuration would wire them, without the rest
// of Alloy. scripts/bench builds it inside a copy of Alloy's module, because its packages are internal.
//
//	alloy-peer LISTEN_PORT DESTINATION_URL...
package main

import (
	"context"
	"fmt"
	"os"
	"strconv"

	"github.com/go-kit/log"
	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/trace/noop"

	"github.com/grafana/alloy/internal/component"
	fnet "github.com/grafana/alloy/internal/component/common/net"
	"github.com/grafana/alloy/internal/component/pyroscope"
	"github.com/grafana/alloy/internal/component/pyroscope/receive_http"
	"github.com/grafana/alloy/internal/component/pyroscope/write"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) < 2 {
		return fmt.Errorf("usage: alloy-peer LISTEN_PORT DESTINATION_URL...")
	}
	port, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	var receiver pyroscope.Appendable
	options := func(id string) component.Options {
		return component.Options{
			ID:         id,
			Logger:     log.NewNopLogger(),
			Registerer: prometheus.NewRegistry(),
			Tracer:     noop.NewTracerProvider(),
			OnStateChange: func(exports component.Exports) {
				receiver = exports.(write.Exports).Receiver
			},
		}
	}
	var arguments write.Arguments
	for _, url := range args[1:] {
		endpoint := write.GetDefaultEndpointOptions()
		endpoint.URL = url
		arguments.Endpoints = append(arguments.Endpoints, &endpoint)
	}
	if _, err := write.New(options("pyroscope.write.peer"), arguments); err != nil {
		return err
	}
	server := fnet.DefaultServerConfig()
	server.HTTP.ListenAddress = "127.0.0.1"
	server.HTTP.ListenPort = port
	server.HTTP.ConnLimit = 16384
	server.GRPC.ListenAddress = "127.0.0.1"
	front, err := receive_http.New(options("pyroscope.receive_http.peer"), receive_http.Arguments{
		Server:    server,
		ForwardTo: []pyroscope.Appendable{receiver},
	})
	if err != nil {
		return err
	}
	return front.Run(context.Background())
}
