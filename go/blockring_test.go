package blockring

import (
	"errors"
	"io"
	"io/fs"
	"path/filepath"
	"testing"
	"time"
)

var _ io.WriteCloser = (*Writer)(nil)

func ring(t *testing.T, bytes uint64) string {
	path := filepath.Join(t.TempDir(), "ring")
	if err := Create(path, bytes); err != nil {
		t.Fatal(err)
	}
	return path
}

func ends(t *testing.T, bytes uint64) (*Producer, *Consumer) {
	path := ring(t, bytes)
	producer, err := AttachProducer(path, "test", Flush)
	if err != nil {
		t.Fatal(err)
	}
	consumer, err := AttachConsumer(path, "test", Flush)
	if err != nil {
		t.Fatal(err)
	}
	return producer, consumer
}

func TestWriterPublishesEachWriteAsAnItemAndWaitsForRoom(t *testing.T) {
	producer, consumer := ends(t, 4096)
	writer := NewWriter(producer, time.Minute)
	item := make([]byte, 1000)
	done := make(chan error, 1)
	go func() {
		for n := 0; n < 100; n++ {
			item[0] = byte(n)
			if _, err := writer.Write(item); err != nil {
				done <- err
				return
			}
		}
		done <- writer.Close()
	}()
	at, err := consumer.Position()
	for n := 0; n < 100 && err == nil; n++ {
		var found []byte
		if err = consumer.Wait(at, time.Minute); err != nil {
			break
		}
		if found, at, err = consumer.Pop(at); err == nil {
			if len(found) != 1000 || found[0] != byte(n) {
				t.Fatalf("item %d is %v", n, found)
			}
			err = consumer.Advance(at)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if err := consumer.Wait(at, 0); !errors.Is(err, ErrTimedOut) {
		t.Fatal(err)
	}
	if _, _, err := consumer.Pop(at); !errors.Is(err, ErrRetry) {
		t.Fatal(err)
	}
	if err := consumer.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestWriterGivesUpAfterItsTime(t *testing.T) {
	producer, consumer := ends(t, 4096)
	writer := NewWriter(producer, time.Millisecond)
	defer consumer.Close()
	defer writer.Close()
	if _, err := writer.Write(make([]byte, 2000)); err != nil {
		t.Fatal(err)
	}
	if _, err := writer.Write(make([]byte, 2000)); !errors.Is(err, ErrTimedOut) {
		t.Fatal(err)
	}
	if _, err := writer.Write(make([]byte, 5000)); !errors.Is(err, ErrTooLarge) {
		t.Fatal(err)
	}
}

func TestErrorsHaveKindsAndReasons(t *testing.T) {
	_, err := AttachProducer("/no/such/ring", "test", Flush)
	if !errors.Is(err, ErrDevice) || !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	var found *Error
	if !errors.As(err, &found) || found.Name != "device" {
		t.Fatal(err)
	}
	path := ring(t, 4096)
	producer, err := AttachProducer(path, "test", PageCache)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := AttachProducer(path, "test", Flush); !errors.Is(err, ErrRoleTaken) {
		t.Fatal(err)
	}
	if err := producer.Close(); err != nil {
		t.Fatal(err)
	}
	if err := producer.Close(); !errors.Is(err, ErrInvalid) {
		t.Fatal(err)
	}
	if _, err := producer.Push(nil); !errors.Is(err, ErrInvalid) {
		t.Fatal(err)
	}
}
