"""A kubeadm cluster on containerd, made on a Linux machine that has neither a container engine nor a registry.

Everything it makes lies in a few folders (`STATE`, `RUN`, and those that kubeadm knows by name, `OWNED`), so that
`down` removes all of it and nothing else. Container images stay in the user's cache.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import ssl
import string
import subprocess
import tempfile
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from ci import console, images, paths
from ci.cluster import archive, daemons, programs

STATE = Path("/var/lib/anomaly-detection-cluster")
RUN = Path("/run/anomaly-detection-cluster")
OWNED = (Path("/etc/kubernetes"), Path("/var/lib/kubelet"), Path("/var/log/pods"), Path("/var/log/containers"))
MARKER = STATE / "made-by-anomaly-detection-system"
KUBECONFIG = STATE / "kubeconfig"
SOCKET = RUN / "containerd.sock"
IMAGE_STORE = paths.CACHE / "containerd"
BRIDGE = "ads0"
POD_SUBNET, NODE_SUBNET, SERVICE_SUBNET = "10.244.0.0/16", "10.244.0.0/24", "10.96.0.0/16"
FIREWALL_COMMENT = "anomaly-detection-cluster"
REGISTRY = "localhost/ads/system"
NODE_IMAGE = f"{REGISTRY}/kube-proxy"
MANIFESTS = Path(__file__).parent / "manifests"
KEDA_KINDS = ("scaledobjects", "triggerauthentications")
"""Of the chart's option `autoscaling.type: keda`."""

PACKAGES = (
    "buildah",
    "conntrack",
    "containerd",
    "containernetworking-plugins",
    "debootstrap",
    "iproute2",
    "iptables",
    "nftables",
    "runc",
)
"""Debian packages that the host needs."""

PORTS = {
    2379: "etcd",
    2380: "etcd",
    6443: "kube-apiserver",
    10248: "kubelet",
    10249: "kube-proxy",
    10250: "kubelet",
    10256: "kube-proxy",
    10257: "kube-controller-manager",
    10259: "kube-scheduler",
}
"""Ports that the cluster's programs take on this machine."""

_containerd = daemons.Daemon("containerd", RUN)
_kubelet = daemons.Daemon("kubelet", RUN)


def exists() -> bool:
    """Whether a cluster of ours is here, running or not."""
    return MARKER.exists()


def running() -> bool:
    """Whether the cluster answers."""
    if not (exists() and _containerd.pid() and _kubelet.pid() and KUBECONFIG.exists()):
        return False
    server = re.search(r"server: (\S+)", KUBECONFIG.read_text(encoding="utf-8"))
    if not server:
        return False
    # Not by kubectl: the cache that holds it may have been emptied since.
    try:
        context = ssl.create_default_context(cafile="/etc/kubernetes/pki/ca.crt")
        handler = urllib.request.HTTPSHandler(context=context)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), handler)
        with opener.open(f"{server[1]}/readyz", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def foreign() -> str | None:
    """A folder of another Kubernetes installation on this machine, if there is one."""
    if exists():
        return None
    for folder in (Path("/etc/kubernetes/manifests"), Path("/var/lib/kubelet/config.yaml")):
        if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
            return str(folder)
    return None


def busy_ports() -> dict[int, str]:
    """Those of `PORTS` that another program listens on."""
    busy = {}
    for port, user in PORTS.items():
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("0.0.0.0", port))
            except OSError:
                busy[port] = user
    return busy


def ctr(*arguments: str | Path) -> list[str]:
    """The command line of `ctr` for the cluster's containerd."""
    return ["ctr", "--address", str(SOCKET), "--namespace", "k8s.io", *map(str, arguments)]


def up(built: Mapping[str, Path]) -> None:
    """Make the cluster, or leave the running one as it is.

    Args:
        built: the programs by name, as `programs.build` returns them.
    """
    if running():
        console.say("    the cluster is running")
        return
    if exists():
        with console.stage("Remove what an earlier cluster left"):
            down()
    for folder in (STATE, RUN, *OWNED):
        folder.mkdir(parents=True, exist_ok=True)
    MARKER.touch()
    with console.stage("containerd"):
        _start_containerd()
    with console.stage("System images"):
        _load_system_images(built)
    with console.stage("kubeadm init"):
        _initialise()
    with console.stage("Node and pod network"):
        console.run(
            kubectl("-n", "kube-system", "rollout", "status", "daemonset/kube-proxy", "--timeout=180s"), log="cluster"
        )
        console.run(kubectl("wait", "--for=condition=Ready", "node/node1", "--timeout=90s"), log="cluster")
    with console.stage("DNS, storage, metrics and KubeRay"):
        _addons(built)


def _start_containerd() -> None:
    configuration = RUN / "containerd.toml"
    network = STATE / "cni"
    network.mkdir(parents=True, exist_ok=True)
    ipam = {
        "type": "host-local",
        "dataDir": str(RUN / "cni-addresses"),
        "ranges": [[{"subnet": NODE_SUBNET}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    plugins = [
        {"type": "bridge", "bridge": BRIDGE, "isGateway": True, "ipMasq": True, "hairpinMode": True, "ipam": ipam},
        {"type": "portmap", "capabilities": {"portMappings": True}},
    ]
    (network / "10-bridge.conflist").write_text(
        json.dumps({"cniVersion": "0.4.0", "name": "pods", "plugins": plugins}), encoding="utf-8"
    )
    cri = 'plugins."io.containerd.grpc.v1.cri"'
    configuration.parent.mkdir(parents=True, exist_ok=True)
    # restrict_oom_score_adj: a machine without CAP_SYS_RESOURCE may not lower its own score.
    configuration.write_text(
        f"""version = 2
root = "{IMAGE_STORE}"
state = "{RUN}/containerd"
[grpc]
  address = "{SOCKET}"
[{cri}]
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  sandbox_image = "{REGISTRY}/pause:{_pause_version()}"
  max_concurrent_downloads = 3
[{cri}.cni]
  bin_dir = "/usr/lib/cni"
  conf_dir = "{network}"
""",
        encoding="utf-8",
    )
    IMAGE_STORE.mkdir(parents=True, exist_ok=True)
    _containerd.start(["containerd", "--config", configuration])
    try:
        daemons.wait_until(_containerd_answers, "containerd's answer", 30, f"read {_containerd.log}")
    except console.Failure as failure:
        raise console.Failure(
            f"{failure.problem}\n{_containerd.last_lines()}",
            f"read {_containerd.log}; `make clean` removes its stored images if they are damaged",
        ) from failure


def _containerd_answers() -> bool:
    return SOCKET.exists() and subprocess.run(ctr("version"), capture_output=True, check=False).returncode == 0


def _pause_version() -> str:
    return "3.10.1"


def _etcd_version() -> str:
    return f"{programs.module_version('kubernetes', 'go.etcd.io/etcd/server/v3')}-0"


def _coredns_version() -> str:
    return f"v{programs.module_version('kubernetes', 'github.com/coredns/coredns')}"


def system_images(built: Mapping[str, Path]) -> dict[str, tuple[dict[str, Path | str], dict[str, object]]]:
    """Reference → files and options of each image that is one static program."""
    version = f"v{programs.kubernetes_version()}"
    control_plane: dict[str, Path | str] = {"/usr/local/bin/hyperkube": built["hyperkube"]}
    control_plane |= {f"/usr/local/bin/{name}": "hyperkube" for name in programs.KUBERNETES_COMMANDS[:3]}
    found: dict[str, tuple[dict[str, Path | str], dict[str, object]]] = {
        f"{REGISTRY}/{name}:{version}": (control_plane, {}) for name in programs.KUBERNETES_COMMANDS[:3]
    }
    found[f"{REGISTRY}/etcd:{_etcd_version()}"] = ({"/usr/local/bin/etcd": built["etcd"]}, {})
    found[f"{REGISTRY}/coredns:{_coredns_version()}"] = (
        {"/coredns": built["coredns"]},
        {"entrypoint": ["/coredns"]},
    )
    found[f"{REGISTRY}/pause:{_pause_version()}"] = ({"/pause": built["pause"]}, {"entrypoint": ["/pause"]})
    found[_addon_image("kuberay-operator", built)] = ({"/manager": built["kuberay-operator"]}, {"user": "65532:65532"})
    for name in ("metrics-server", "local-path-provisioner"):
        found[_addon_image(name, built)] = ({f"/usr/local/bin/{name}": built[name]}, {})
    return found


def _addon_image(name: str, built: Mapping[str, Path]) -> str:
    return f"{REGISTRY}/{name}:{built[name].parent.name}"


def _node_image() -> str:
    return f"{NODE_IMAGE}:v{programs.kubernetes_version()}"


def _load_system_images(built: Mapping[str, Path]) -> None:
    # The control plane's tags are versions, not hashes: a record tells which programs the stored images hold.
    record = IMAGE_STORE / "system-images.json"
    stored = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}
    present = set(console.output(ctr("images", "ls", "-q")).split())
    wanted = {
        reference: hashlib.sha256(
            repr((sorted((k, str(v)) for k, v in files.items()), sorted(options.items()))).encode()
        ).hexdigest()
        for reference, (files, options) in system_images(built).items()
    }
    node, base = _node_image(), images.base_image()
    wanted[node] = hashlib.sha256(f"{base} {built['hyperkube']}".encode()).hexdigest()
    stale = [
        reference for reference in wanted if reference not in present or stored.get(reference) != wanted[reference]
    ]
    with tempfile.TemporaryDirectory(dir=STATE) as scratch:
        for reference in stale:
            console.say(f"    {reference}")
            target = Path(scratch) / "image.tar"
            if reference == node:
                _build_node_image(reference, base, built["hyperkube"], target)
            else:
                files, options = system_images(built)[reference]
                archive.write_static_image(target, [reference], files, **options)  # type: ignore[arg-type]
            console.run(ctr("images", "import", target), log="cluster")
            target.unlink()
            stored[reference] = wanted[reference]
            record.write_text(json.dumps(stored, indent=1), encoding="utf-8")
    for reference in wanted:
        # Otherwise the kubelet's garbage collection may take what no registry can give back.
        console.run(ctr("images", "label", reference, "io.cri-containerd.pinned=pinned"), log="cluster")


def _build_node_image(reference: str, base: str, hyperkube: Path, target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=STATE) as context:
        shutil.copy(Path(__file__).parent / "kube-proxy" / "Dockerfile", context)
        shutil.copy(hyperkube, Path(context) / "kube-proxy")
        engine = images.engine()
        engine.build(reference, Path(context) / "Dockerfile", Path(context), {"BASE_IMAGE": base}, {})
    with target.open("wb") as stream:
        engine.archive(reference, set(), stream)


def _configuration() -> str:
    version = programs.kubernetes_version()
    resolv = _resolv_conf()
    return f"""apiVersion: kubeadm.k8s.io/v1beta4
kind: InitConfiguration
nodeRegistration:
  name: node1
  criSocket: unix://{SOCKET}
  imagePullPolicy: IfNotPresent
  taints: []
---
apiVersion: kubeadm.k8s.io/v1beta4
kind: ClusterConfiguration
clusterName: anomaly-detection
kubernetesVersion: v{version}
imageRepository: {REGISTRY}
networking: {{podSubnet: {POD_SUBNET}, serviceSubnet: {SERVICE_SUBNET}}}
dns: {{imageTag: {_coredns_version()}}}
etcd:
  local:
    dataDir: {STATE}/etcd
    imageTag: {_etcd_version()}
    # The cluster is made anew after a crash: waiting for the disk buys nothing.
    extraArgs: [{{name: unsafe-no-fsync, value: "true"}}]
controllerManager:
  # One of each runs: nobody to elect a leader from.
  extraArgs: [{{name: leader-elect, value: "false"}}]
scheduler:
  extraArgs: [{{name: leader-elect, value: "false"}}]
---
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
cgroupDriver: cgroupfs
failSwapOn: false
failCgroupV1: false
localStorageCapacityIsolation: false
resolvConf: {resolv}
serializeImagePulls: false
imageGCHighThresholdPercent: 100
evictionHard: {{memory.available: 100Mi, nodefs.available: 1%, imagefs.available: 1%}}
---
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: iptables
conntrack: {{maxPerCore: 0, min: 0}}
"""


def _resolv_conf() -> Path:
    # A loopback name server would make CoreDNS ask itself.
    source = Path("/run/systemd/resolve/resolv.conf")
    if not source.exists():
        source = Path("/etc/resolv.conf")
    lines = source.read_text(encoding="utf-8").splitlines() if source.exists() else []
    kept = [line for line in lines if not re.match(r"\s*nameserver\s+(127\.|::1)", line)]
    if not any(line.startswith("nameserver") for line in kept):
        kept.append(
            "nameserver 192.0.2.1"
        )  # an address reserved for documentation: outside names fail, inside ones work
    target = STATE / "resolv.conf"
    target.write_text("\n".join(kept) + "\n", encoding="utf-8")
    return target


def _initialise() -> None:
    configuration = STATE / "kubeadm.yaml"
    configuration.write_text(_configuration(), encoding="utf-8")
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1", encoding="utf-8")
    _keep_service_traffic_inside()
    # kubeadm expects a service manager that restarts the kubelet: here the kubelet waits for the files kubeadm writes.
    script = (
        "until [ -f /var/lib/kubelet/config.yaml ] && [ -f /var/lib/kubelet/kubeadm-flags.env ]; do sleep 0.1; done; "
        ". /var/lib/kubelet/kubeadm-flags.env; "
        'exec "$0" --bootstrap-kubeconfig=/etc/kubernetes/bootstrap-kubelet.conf '
        "--kubeconfig=/etc/kubernetes/kubelet.conf --config=/var/lib/kubelet/config.yaml $KUBELET_KUBEADM_ARGS"
    )
    _kubelet.start(["bash", "-c", script, paths.BIN / "kubelet"])
    try:
        console.run(
            [paths.BIN / "kubeadm", "init", "--config", configuration, "--skip-phases=preflight", "--skip-token-print"],
            log="cluster",
            env={"PATH": f"{paths.BIN}:{os.environ['PATH']}"},
        )
    except console.Failure as failure:
        raise console.Failure(
            f"{failure.problem}\n  the kubelet's last lines:\n{_kubelet.last_lines()}",
            f"read {_kubelet.log}; `make down` removes the unfinished cluster",
        ) from failure
    shutil.copy("/etc/kubernetes/admin.conf", KUBECONFIG)
    KUBECONFIG.chmod(0o600)


def _keep_service_traffic_inside() -> None:
    """Refuse what is addressed to a Service that kube-proxy has not translated to a pod.

    Otherwise it leaves through the default route, and where something out there answers, the connection outlives the
    mistake: the API server would ask a stranger for metrics for ever.
    """
    for chain in ("OUTPUT", "FORWARD"):
        rule = [
            "--destination",
            SERVICE_SUBNET,
            "--jump",
            "REJECT",
            "--match",
            "comment",
            "--comment",
            FIREWALL_COMMENT,
        ]
        console.run(["iptables", "--wait", "--insert", chain, *rule], log="cluster")


def kubectl(*arguments: str | Path) -> list[str]:
    """The command line of `kubectl` for this cluster."""
    return [str(paths.BIN / "kubectl"), "--kubeconfig", str(KUBECONFIG), *map(str, arguments)]


def _addons(built: Mapping[str, Path]) -> None:
    values = {
        "VOLUMES": str(STATE / "volumes"),
        "NODE_IMAGE": _node_image(),
        "LOCAL_PATH_IMAGE": _addon_image("local-path-provisioner", built),
        "METRICS_SERVER_IMAGE": _addon_image("metrics-server", built),
    }
    for name in ("local-path", "metrics-server"):
        text = (MANIFESTS / f"{name}.yaml").read_text(encoding="utf-8")
        manifest = string.Template(text).safe_substitute(values)
        console.run(kubectl("apply", "--server-side", "-f", "-"), log="cluster", input=manifest)
    # One node needs one DNS server; a second one costs a tenth of a core's request.
    console.run(kubectl("-n", "kube-system", "scale", "deployment/coredns", "--replicas=1"), log="cluster")
    install_kuberay(KUBECONFIG, _addon_image("kuberay-operator", built))
    _define_keda()
    waiting = (
        ("kube-system", "deployment/coredns"),
        ("kube-system", "deployment/metrics-server"),
        ("local-path-storage", "deployment/local-path-provisioner"),
        ("ray-system", "deployment/kuberay-operator"),
    )
    for namespace, workload in waiting:
        console.run(kubectl("-n", namespace, "rollout", "status", workload, "--timeout=180s"), log="cluster")


def _define_keda() -> None:
    """KEDA's custom resources without its operator: the API server checks what the chart's option makes of them."""
    folder = programs.module_directory("keda", "github.com/kedacore/keda/v2") / "config" / "crd" / "bases"
    files = [word for kind in KEDA_KINDS for word in ("-f", folder / f"keda.sh_{kind}.yaml")]
    console.run([paths.BIN / "kubectl", "--kubeconfig", KUBECONFIG, "apply", "--server-side", *files], log="cluster")


def install_kuberay(kubeconfig: Path | None, image: str) -> None:
    """Install KubeRay's operator and CRDs from the pinned module's manifests.

    Args:
        kubeconfig: the cluster; the current context when None.
        image: reference of the operator's image.
    """
    name, _, tag = image.rpartition(":")
    base = programs.module_directory("kubernetes", "github.com/ray-project/kuberay/ray-operator") / "config"
    command = [str(paths.BIN / "kubectl"), *(["--kubeconfig", str(kubeconfig)] if kubeconfig else [])]
    with tempfile.TemporaryDirectory(dir=paths.CACHE) as scratch:
        folder = Path(scratch)
        text = (MANIFESTS / "kuberay" / "kustomization.yaml").read_text(encoding="utf-8")
        values = {
            "KUBERAY_CONFIG": os.path.relpath(base, folder.resolve()),
            "KUBERAY_IMAGE_NAME": name,
            "KUBERAY_IMAGE_TAG": tag,
        }
        (folder / "kustomization.yaml").write_text(string.Template(text).substitute(values), encoding="utf-8")
        rendered = console.output([*command, "kustomize", folder, "--load-restrictor=LoadRestrictionsNone"])
    namespace = '{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"ray-system"}}\n---\n'
    console.run([*command, "apply", "--server-side", "-f", "-"], log="cluster", input=namespace + rendered)


def down() -> None:
    """Remove the cluster: its processes, containers, mounts, network and folders. Safe on what a crash left."""
    if not exists():
        console.say("    no cluster of ours is here")
        return
    _kubelet.stop()
    if not _containerd.pid() and shutil.which("containerd"):
        # Containers of a crashed run are removed by the containerd that knows them.
        with contextlib.suppress(console.Failure):
            _start_containerd()
    if _containerd.pid():
        _remove_containers()
    _containerd.stop()
    _kill_shims()
    _unmount()
    _remove_network()
    for folder in (*OWNED, RUN):
        shutil.rmtree(folder, ignore_errors=True)
    _remove_control_groups()
    shutil.rmtree(STATE, ignore_errors=True)


def _remove_containers() -> None:
    def listed(*arguments: str) -> list[str]:
        done = subprocess.run(ctr(*arguments), capture_output=True, text=True, check=False)
        return done.stdout.split()

    for task in listed("tasks", "ls", "-q"):
        subprocess.run(ctr("tasks", "kill", "--signal", "9", task), capture_output=True, check=False)

    def drained() -> bool:
        tasks = listed("tasks", "ls", "-q")
        if tasks:
            subprocess.run(ctr("tasks", "rm", "-f", *tasks), capture_output=True, check=False)
        return not listed("tasks", "ls", "-q")

    with contextlib.suppress(console.Failure):
        daemons.wait_until(drained, "the end of every container", 20, "run `make down` again")
    containers = listed("containers", "ls", "-q")
    if containers:
        subprocess.run(ctr("containers", "rm", *containers), capture_output=True, check=False)


def _kill_shims() -> None:
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if words[0].endswith(b"containerd-shim-runc-v2") and str(SOCKET).encode() in words:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(entry.name), signal.SIGKILL)


def _unmount() -> None:
    mounted = [line.split()[1] for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines()]
    ours = [point for point in mounted if f"{point}/".startswith(("/var/lib/kubelet/", f"{RUN}/", f"{STATE}/"))]
    for point in sorted(ours, reverse=True):
        subprocess.run(["umount", "--lazy", point.encode().decode("unicode_escape")], capture_output=True, check=False)


def _remove_network() -> None:
    subprocess.run(["ip", "link", "delete", BRIDGE], capture_output=True, check=False)
    for family in ("iptables", "ip6tables"):
        saved = subprocess.run([f"{family}-save"], capture_output=True, text=True, check=False).stdout
        kept = [line for line in saved.splitlines() if not re.search(rf"\b(KUBE-|CNI-)|{FIREWALL_COMMENT}", line)]
        subprocess.run([f"{family}-restore"], input="\n".join(kept) + "\n", text=True, capture_output=True, check=False)


def _remove_control_groups() -> None:
    for root in [*Path("/sys/fs/cgroup").glob("*/kubepods"), Path("/sys/fs/cgroup/kubepods")]:
        if root.is_dir():
            for folder, _, _ in os.walk(root, topdown=False):
                with contextlib.suppress(OSError):
                    os.rmdir(folder)


def prune_images(keep: set[str]) -> None:
    """Remove images of ours that neither the cluster nor the release needs any more.

    Args:
        keep: references of the release's images.
    """
    for reference in console.output(ctr("images", "ls", "-q")).split():
        ours = reference.startswith("localhost/ads/") and not reference.startswith(f"{REGISTRY}/")
        if ours and reference not in keep:
            console.run(ctr("images", "rm", reference), log="cluster")
