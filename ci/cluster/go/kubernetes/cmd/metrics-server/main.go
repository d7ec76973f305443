// Command metrics-server is metrics-server's own server on the API server library of this module's Kubernetes. Its own
// command is written for an older library, and would bring a second copy of everything to compile.
package main

import (
	"fmt"
	"net"
	"os"
	"time"

	corev1 "k8s.io/api/core/v1"
	openapinamer "k8s.io/apiserver/pkg/endpoints/openapi"
	genericapiserver "k8s.io/apiserver/pkg/server"
	genericoptions "k8s.io/apiserver/pkg/server/options"
	"k8s.io/apiserver/pkg/util/compatibility"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/metrics-server/pkg/api"
	generatedopenapi "sigs.k8s.io/metrics-server/pkg/api/generated/openapi"
	"sigs.k8s.io/metrics-server/pkg/scraper/client"
	"sigs.k8s.io/metrics-server/pkg/server"
)

const (
	port       = 10250
	resolution = 15 * time.Second
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "metrics-server:", err)
		os.Exit(1)
	}
}

func run() error {
	kubernetes, err := rest.InClusterConfig()
	if err != nil {
		return err
	}
	kubernetes.ContentType = "application/vnd.kubernetes.protobuf"
	if err := rest.SetKubernetesDefaults(kubernetes); err != nil {
		return err
	}
	kubelet := rest.CopyConfig(kubernetes)
	// The kubelet of a single-node cluster serves a certificate that it signed itself.
	kubelet.TLSClientConfig = rest.TLSClientConfig{Insecure: true}

	serving := genericoptions.NewSecureServingOptions().WithLoopback()
	serving.BindPort = port
	serving.ServerCert.CertDirectory = "/tmp"
	if err := serving.MaybeDefaultWithSelfSignedCerts("localhost", nil, []net.IP{net.ParseIP("127.0.0.1")}); err != nil {
		return err
	}
	config := genericapiserver.NewConfig(api.Codecs)
	if err := serving.ApplyTo(&config.SecureServing, &config.LoopbackClientConfig); err != nil {
		return err
	}
	if err := genericoptions.NewDelegatingAuthenticationOptions().ApplyTo(&config.Authentication, config.SecureServing, nil); err != nil {
		return err
	}
	if err := genericoptions.NewDelegatingAuthorizationOptions().ApplyTo(&config.Authorization); err != nil {
		return err
	}
	config.EffectiveVersion = compatibility.DefaultBuildEffectiveVersion()
	namer := openapinamer.NewDefinitionNamer(api.Scheme)
	config.OpenAPIConfig = genericapiserver.DefaultOpenAPIConfig(generatedopenapi.GetOpenAPIDefinitions, namer)
	config.OpenAPIV3Config = genericapiserver.DefaultOpenAPIV3Config(generatedopenapi.GetOpenAPIDefinitions, namer)

	complete, err := server.Config{
		Apiserver: config,
		Rest:      kubernetes,
		Kubelet: &client.KubeletClientConfig{
			Scheme:              "https",
			DefaultPort:         port,
			AddressTypePriority: []corev1.NodeAddressType{corev1.NodeInternalIP},
			UseNodeStatusPort:   true,
			Client:              *kubelet,
		},
		MetricResolution: resolution,
		ScrapeTimeout:    resolution * 9 / 10,
	}.Complete()
	if err != nil {
		return err
	}
	return complete.RunUntil(genericapiserver.SetupSignalHandler())
}
