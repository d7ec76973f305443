//go:build tools

// Package kubernetes pins, beside the programs of this module, those built from other modules' main packages.
package kubernetes

import (
	_ "github.com/rancher/local-path-provisioner"
	_ "github.com/ray-project/kuberay/ray-operator"
	_ "go.etcd.io/etcd/server/v3"
	_ "helm.sh/helm/v3/cmd/helm"
)
