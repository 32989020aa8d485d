// This file is responsible for `interop decode`: does the real decoder accept
// these bytes as a PushRequest, and what is in it. The options are those of
// connect-go's own codecs; a test holds both to the same verdicts.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"

	pushv1 "github.com/grafana/pyroscope/api/gen/proto/go/push/v1"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// decodeRequest is one input line.
type decodeRequest struct {
	Codec string    `json:"codec"` // proto or json
	Body  *rawBytes `json:"body"`
}

// decodeLine is the verdict. Error texts of the protobuf library are unstable
// on purpose (WIRE.md 3.3); only `ok` and `series` are for comparing.
type decodeLine struct {
	OK     bool     `json:"ok"`
	Series []series `json:"series"`
	Error  string   `json:"error"`
}

func decodeCommand(ctx context.Context, args []string, stdin io.Reader, out *lines) error {
	if err := parseFlags(newFlags("decode"), args, false); err != nil {
		return err
	}
	return eachLine(ctx, stdin, out, func(line []byte) any {
		var request decodeRequest
		if err := json.Unmarshal(line, &request); err != nil {
			return inputError{err.Error()}
		}
		if request.Body == nil || (request.Codec != "proto" && request.Codec != "json") {
			return inputError{"wants a codec, proto or json, and a body"}
		}
		message, err := decodePush(request.Codec, []byte(*request.Body))
		if err != nil {
			return decodeLine{Series: []series{}, Error: err.Error()}
		}
		return decodeLine{OK: true, Series: describe(message.GetSeries())}
	})
}

func decodePush(codec string, body []byte) (*pushv1.PushRequest, error) {
	message := &pushv1.PushRequest{}
	if codec == "proto" {
		return message, proto.Unmarshal(body, message)
	}
	if len(body) == 0 {
		return nil, errors.New("an empty body is not JSON")
	}
	return message, protojson.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(body, message)
}
