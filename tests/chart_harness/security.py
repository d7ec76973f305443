"""Pod Security Standards, level `restricted`, for pod templates."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from chart_harness.objects import Pod

_VOLUMES = {
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret",
    "volumeClaimTemplate",
}  # fmt: skip
_SYSCTLS = {
    "kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start", "net.ipv4.ping_group_range", "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl", "net.ipv4.tcp_keepalive_probes", "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_rmem", "net.ipv4.tcp_syncookies", "net.ipv4.tcp_wmem",
}  # fmt: skip


def restricted(pod: Pod) -> list[str]:
    """What the admission controller at level `restricted` (version 1.34) would refuse about a pod.

    Returns:
        Sentences, each with the template line of the nearest field where that is known.
    """
    found = []
    for path, sentence in (*_pod_problems(pod), *_container_problems(pod)):
        location = pod.owner.locate(f"{pod.path}.{path}")
        found.append(f"{sentence} ({location})" if location else sentence)
    return found


def _pod_problems(pod: Pod) -> Iterator[tuple[str, str]]:
    spec = pod.spec
    for name in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(name):
            yield f"spec.{name}", f"{name} is true"
    for name, volume in pod.volumes.items():
        kinds = set(volume) - {"name"}
        if not kinds <= _VOLUMES:
            sentence = f"the volume {name} is of a kind that is not allowed: {', '.join(sorted(kinds - _VOLUMES))}"
            yield f"spec.volumes[{name}]", sentence
    for sysctl in (spec.get("securityContext") or {}).get("sysctls") or []:
        if sysctl.get("name") not in _SYSCTLS:
            yield "spec.securityContext.sysctls", f"the sysctl {sysctl.get('name')} is not among the safe ones"


def _container_problems(pod: Pod) -> Iterator[tuple[str, str]]:
    pod_context: dict[str, Any] = pod.spec.get("securityContext") or {}
    if pod_context.get("runAsUser") == 0:
        yield "spec.securityContext.runAsUser", "the pod runs as user 0"
    for container in pod.containers:
        context: dict[str, Any] = container.spec.get("securityContext") or {}
        name = container.name
        path = f"spec.{container.path}"
        if context.get("privileged"):
            yield f"{path}.securityContext.privileged", f"{name}: privileged is true"
        if context.get("allowPrivilegeEscalation") is not False:
            yield f"{path}.securityContext.allowPrivilegeEscalation", f"{name}: allowPrivilegeEscalation is not false"
        if not context.get("runAsNonRoot", pod_context.get("runAsNonRoot")):
            yield (
                f"{path}.securityContext.runAsNonRoot",
                f"{name}: runAsNonRoot is not true, neither on the container nor on the pod",
            )
        if context.get("runAsUser") == 0:
            yield f"{path}.securityContext.runAsUser", f"{name}: runs as user 0"
        profile = (context.get("seccompProfile") or pod_context.get("seccompProfile") or {}).get("type")
        if profile not in ("RuntimeDefault", "Localhost"):
            yield (
                f"{path}.securityContext.seccompProfile",
                f"{name}: seccompProfile is {profile or 'not set'}, not RuntimeDefault or Localhost",
            )
        capabilities = context.get("capabilities") or {}
        if "ALL" not in (capabilities.get("drop") or []):
            yield f"{path}.securityContext.capabilities.drop", f"{name}: capabilities.drop does not name ALL"
        if extra := set(capabilities.get("add") or []) - {"NET_BIND_SERVICE"}:
            yield (
                f"{path}.securityContext.capabilities.add",
                f"{name}: adds the capabilities {', '.join(sorted(extra))}",
            )
        if context.get("procMount", "Default") != "Default":
            yield f"{path}.securityContext.procMount", f"{name}: procMount is {context['procMount']}"
        for level in (pod_context, context):
            options = level.get("seLinuxOptions") or {}
            if options.get("user") or options.get("role"):
                yield f"{path}.securityContext.seLinuxOptions", f"{name}: sets an SELinux user or role"
        for port in container.spec.get("ports") or []:
            if port.get("hostPort"):
                yield f"{path}.ports", f"{name}: takes the host port {port['hostPort']}"
        for handler in ("livenessProbe", "readinessProbe", "startupProbe"):
            probe = container.spec.get(handler) or {}
            if any((probe.get(kind) or {}).get("host") for kind in ("httpGet", "tcpSocket")):
                yield f"{path}.{handler}", f"{name}: {handler} names a host"
