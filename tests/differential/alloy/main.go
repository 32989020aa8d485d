// Alloy's own pyroscope.receive_http, pyroscope.relabel and pyroscope.write, as a configuration file of Alloy wires them,
// without the rest of Alloy. scripts/differential builds it inside a copy of Alloy's source, because its packages are
// internal. Blocks are read in the order of the file: a block may name only those above it.
//
//	alloy-components FILE
package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/trace/noop"

	"github.com/grafana/alloy/internal/component"
	"github.com/grafana/alloy/internal/component/pyroscope/receive_http"
	"github.com/grafana/alloy/internal/component/pyroscope/relabel"
	"github.com/grafana/alloy/internal/component/pyroscope/write"
	"github.com/grafana/alloy/syntax/ast"
	"github.com/grafana/alloy/syntax/parser"
	"github.com/grafana/alloy/syntax/vm"
)

func main() {
	if err := run(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	file, err := parser.ParseFile(path, text)
	if err != nil {
		return err
	}
	writers, relabels := map[string]any{}, map[string]any{}
	scope := vm.NewScope(map[string]any{
		"pyroscope": map[string]any{"write": writers, "relabel": relabels},
	})
	logger := slog.New(slog.NewTextHandler(io.Discard, nil))
	if os.Getenv("VERBOSE") != "" {
		logger = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	tracer := noop.NewTracerProvider()
	for _, statement := range file.Body {
		block, is := statement.(*ast.BlockStmt)
		if !is {
			return fmt.Errorf("only blocks are understood")
		}
		evaluator, name := vm.New(block.Body), block.GetBlockName()
		switch name {
		case "pyroscope.write":
			var arguments write.Arguments
			if err := evaluator.Evaluate(scope, &arguments); err != nil {
				return err
			}
			export := func(exports write.Exports) {
				writers[block.Label] = map[string]any{"receiver": exports.Receiver}
			}
			_, err := write.New(logger, tracer.Tracer(name), prometheus.NewRegistry(), export, "Alloy/differential", "uid", "", arguments)
			if err != nil {
				return err
			}
		case "pyroscope.relabel":
			var arguments relabel.Arguments
			if err := evaluator.Evaluate(scope, &arguments); err != nil {
				return err
			}
			options := component.Options{
				ID: name + "." + block.Label, Logger: logger, Registerer: prometheus.NewRegistry(), Tracer: tracer,
				OnStateChange: func(exports component.Exports) {
					relabels[block.Label] = map[string]any{"receiver": exports.(relabel.Exports).Receiver}
				},
			}
			if _, err := relabel.New(options, arguments); err != nil {
				return err
			}
		case "pyroscope.receive_http":
			var arguments receive_http.Arguments
			if err := evaluator.Evaluate(scope, &arguments); err != nil {
				return err
			}
			arguments.Server.GRPC.ListenAddress, arguments.Server.GRPC.ListenPort = "127.0.0.1", 0
			front, err := receive_http.New(logger, tracer.Tracer(name), prometheus.NewRegistry(), arguments)
			if err != nil {
				return err
			}
			go front.Run(context.Background())
		default:
			return fmt.Errorf("%s is none of the components", name)
		}
	}
	fmt.Println("ready")
	// Ends with the process that started it.
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}
