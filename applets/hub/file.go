package hub

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"sync/atomic"
	"syscall"
)

// replace writes a file as a whole. Only a regular file is replaced: one that
// is a link is somebody's decision. Nobody else may write it at the same time.
func replace(path string, data []byte, mode fs.FileMode) error {
	switch st, err := os.Lstat(path); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return err
	case !st.Mode().IsRegular():
		return errors.New("there is something that is not a regular file; move it away first")
	}
	tmp := path + ".new"
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|syscall.O_NOFOLLOW, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	return nil
}

// memory is the file in which a hub's questions outlive it.
type memory struct {
	path   string
	log    *slog.Logger
	failed atomic.Bool // the last time
}

// load is what was saved; nil if there is nothing that can be read.
func (m *memory) load() []byte {
	f, err := os.OpenFile(m.path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var data []byte
	if err == nil {
		defer f.Close()
		data, err = io.ReadAll(io.LimitReader(f, MaxState+1))
	}
	if err != nil {
		m.log.Warn("the questions that were open are lost", "err", err)
		return nil
	}
	return data
}

// save is a Config's Save.
func (m *memory) save(state []byte) {
	err := replace(m.path, state, 0o600)
	if err != nil && !m.failed.Load() {
		m.log.Warn("open questions will not outlive this process", "err", fmt.Errorf("write %s: %w", m.path, err))
	}
	m.failed.Store(err != nil)
}
