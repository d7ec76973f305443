//go:build tools

// Package helmunittest pins helm-unittest, which the harness is compared with.
package helmunittest

import _ "github.com/helm-unittest/helm-unittest/cmd/helm-unittest"
