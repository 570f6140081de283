//go:build go1.21

package blockring_test

import (
	"blockring"
	"encoding/json"
	"log/slog"
	"path/filepath"
	"testing"
	"time"
)

func TestHandlerMakesAnItemOfEachRecord(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ring")
	if err := blockring.Create(path, 4096); err != nil {
		t.Fatal(err)
	}
	producer, err := blockring.AttachProducer(path, "test", blockring.Flush)
	if err != nil {
		t.Fatal(err)
	}
	consumer, err := blockring.AttachConsumer(path, "test", blockring.Flush)
	if err != nil {
		t.Fatal(err)
	}
	writer := blockring.NewWriter(producer, time.Minute)
	defer consumer.Close()
	defer writer.Close()
	slog.New(blockring.NewHandler(writer, nil)).Info("hello", "from", "guest")
	item, _, err := consumer.Pop(0)
	if err != nil {
		t.Fatal(err)
	}
	var record map[string]string
	if err := json.Unmarshal(item, &record); err != nil || record["from"] != "guest" {
		t.Fatalf("%s: %v", item, err)
	}
}
