//go:build tools

// Package kind pins kind, the cluster made on a Docker engine.
package kind

import _ "sigs.k8s.io/kind"
