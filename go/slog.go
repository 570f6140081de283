//go:build go1.21

package blockring

import "log/slog"

// NewHandler makes a handler of log/slog: each record is an item with one line of JSON. Needs Go
// 1.21.
func NewHandler(writer *Writer, options *slog.HandlerOptions) slog.Handler {
	// It calls Write once for each record, one at a time.
	return slog.NewJSONHandler(writer, options)
}
