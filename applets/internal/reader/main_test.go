package reader

import (
	"testing"

	"github.com/terok-ai/terok-box/nl/kerneltest"
)

func TestMain(m *testing.M) { kerneltest.Main(m) }
