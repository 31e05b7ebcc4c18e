"""The manifests: valid, closed by default, and what the services really read."""

from __future__ import annotations

import base64
import copy
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
from cryptography import x509
from pydantic_settings import BaseSettings

from services.common.s3 import Bucket
from services.gateway.config import GatewaySettings
from services.ingest.config import IngestSettings
from services.keyvault.config import KeyvaultSettings
from services.standalone.pki import service_names
from services.vectorstore.config import VectorstoreSettings
from tests.deploy.rendered import OVERLAYS, SERVICES, Json, named, of_kind, rendered

_SETTINGS: dict[str, type[BaseSettings]] = {
    "gateway": GatewaySettings,
    "keyvault": KeyvaultSettings,
    "vectorstore": VectorstoreSettings,
    "ingest": IngestSettings,
}
# Of other projects; their schemas are not Kubernetes' own.
_FOREIGN_KINDS = {"Certificate", "Issuer", "PodMonitor", "PrometheusRule"}
_OF_DATABASES = {
    "local": {service: set[str]() for service in SERVICES},
    "aws": {service: {f"sealcomb-{service}-database"} for service in SERVICES},
}
_OF_DATABASES["aws"]["gateway"] |= {"sealcomb-gateway-limits"}
_OWN_SECRETS = {
    "gateway": {"sealcomb-gateway-tls", "sealcomb-gateway-keys", "sealcomb-edge-tls"},
    "keyvault": {"sealcomb-keyvault-tls", "sealcomb-keyvault-keys"},
    "vectorstore": {"sealcomb-vectorstore-tls"},
    "ingest": {"sealcomb-ingest-tls"},
}


def _pod_spec(service: str, overlay: str) -> Json:
    spec: Json = named(rendered(overlay), "StatefulSet", service)["spec"]["template"]["spec"]
    return spec


def _environment(service: str, overlay: str) -> dict[str, str]:
    (container,) = _pod_spec(service, overlay)["containers"]
    return {entry["name"]: entry["value"] for entry in container["env"] if "value" in entry}


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for part in value.values():
            yield from _strings(part)
    elif isinstance(value, list):
        for part in value:
            yield from _strings(part)
    elif isinstance(value, str):
        yield value


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_document_is_valid_to_the_letter(overlay: str) -> None:
    for document in rendered(overlay):
        if document["kind"] not in _FOREIGN_KINDS:
            kubernetes_validate.validate(document, "1.32", strict=True)


def test_a_word_that_kubernetes_does_not_know_is_noticed() -> None:
    """The twin of the validation."""
    wrong = copy.deepcopy(named(rendered("local"), "StatefulSet", "keyvault"))
    wrong["spec"]["template"]["spec"]["containers"][0]["securityContext"]["readOnlyRootFileSystem"] = True
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, "1.32", strict=True)


def restricted_faults(pod: Json) -> list[str]:
    """What in a pod is more than the Pod Security Standard `restricted`, or than a read-only root, allows."""
    own = pod.get("securityContext", {})
    faults = [f"the pod asks for {name}" for name in ("hostNetwork", "hostPID", "hostIPC") if pod.get(name)]
    if pod.get("automountServiceAccountToken") is not False:
        faults.append("a service account's token is mounted")
    if own.get("runAsNonRoot") is not True or not own.get("runAsUser"):
        faults.append("it may run as root")
    if own.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        faults.append("no seccomp profile")
    kinds = {next(key for key in volume if key != "name") for volume in pod["volumes"]}
    faults += [f"a volume of kind {kind}" for kind in kinds - {"secret", "configMap", "emptyDir"}]
    for container in [*pod["containers"], *pod.get("initContainers", [])]:
        context = container.get("securityContext", {})
        if context.get("allowPrivilegeEscalation") is not False or context.get("privileged"):
            faults.append("privileges may grow")
        if context.get("readOnlyRootFilesystem") is not True:
            faults.append("the root can be written")
        if context.get("capabilities") != {"drop": ["ALL"]}:
            faults.append("capabilities are left")
        if "memory" not in container.get("resources", {}).get("limits", {}):
            faults.append("memory has no limit")
    return faults


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("service", SERVICES)
def test_every_pod_is_restricted_and_has_no_token(overlay: str, service: str) -> None:
    """G1, G4."""
    assert restricted_faults(_pod_spec(service, overlay)) == []
    account = named(rendered(overlay), "ServiceAccount", service)
    assert account["automountServiceAccountToken"] is False
    assert not of_kind(rendered(overlay), "Role")
    assert not of_kind(rendered(overlay), "ClusterRole")


def test_each_slackening_is_noticed() -> None:
    """The twin of G1 and G4."""
    good = _pod_spec("ingest", "local")

    def slackened(change: Any) -> list[str]:
        pod = copy.deepcopy(good)
        change(pod)
        return restricted_faults(pod)

    for change in (
        lambda pod: pod.pop("automountServiceAccountToken"),
        lambda pod: pod.update(hostNetwork=True),
        lambda pod: pod["securityContext"].pop("runAsNonRoot"),
        lambda pod: pod["securityContext"].pop("seccompProfile"),
        lambda pod: pod["volumes"].append({"name": "host", "hostPath": {"path": "/"}}),
        lambda pod: pod["containers"][0]["securityContext"].update(privileged=True),
        lambda pod: pod["containers"][0]["securityContext"].update(readOnlyRootFilesystem=False),
        lambda pod: pod["containers"][0]["securityContext"].update(capabilities={"add": ["NET_RAW"]}),
        lambda pod: pod["containers"][0].pop("resources"),
    ):
        assert len(slackened(change)) == 1


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("service", SERVICES)
def test_secrets_come_as_files_and_each_service_has_its_own_alone(overlay: str, service: str) -> None:
    """G5, C4: a pod that is taken over has no other service's certificate or key."""
    pod = _pod_spec(service, overlay)
    mounted = {volume["secret"]["secretName"] for volume in pod["volumes"] if "secret" in volume}
    assert mounted == _OWN_SECRETS[service] | _OF_DATABASES[overlay][service]
    assert all(v["secret"]["defaultMode"] == 0o440 for v in pod["volumes"] if "secret" in v)
    for container in pod["containers"]:
        assert "envFrom" not in container
        others = [entry for entry in container["env"] if set(entry) != {"name", "value"}]
        # A pod's own name is no secret.
        assert all(entry["valueFrom"] == {"fieldRef": {"fieldPath": "metadata.name"}} for entry in others)
        assert "args" not in container
        assert "command" not in container
    assert not of_kind(rendered(overlay), "Secret"), "no secret is kept beside the manifests"
    assert not any("PRIVATE KEY" in text for text in _strings(list(rendered(overlay))))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_only_the_edge_is_given_to_the_outside(overlay: str) -> None:
    services = of_kind(rendered(overlay), "Service")
    assert {service["metadata"]["name"] for service in services} == {"edge", *SERVICES}
    for service in services:
        kind, name = service["spec"].get("type", "ClusterIP"), service["metadata"]["name"]
        assert kind == ("LoadBalancer" if (name, overlay) == ("edge", "aws") else "ClusterIP"), name
        ports = {port["targetPort"] for port in service["spec"]["ports"]}
        assert ports == ({"edge"} if name == "edge" else {"grpc"})


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("service", SERVICES)
def test_every_variable_is_a_setting_and_the_settings_are_whole(
    overlay: str, service: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = _environment(service, overlay)
    fields = {f"SEALCOMB_{name.upper()}" for name in _SETTINGS[service].model_fields}
    ours = {name for name in environment if name.startswith("SEALCOMB_")}
    assert ours <= fields
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    settings = _SETTINGS[service]()
    if isinstance(settings, KeyvaultSettings):
        settings.check_kms()
        settings.check_root_key_place()


@pytest.mark.parametrize("service", SERVICES)
def test_each_database_has_a_job_for_its_schema_that_is_as_restricted_as_a_pod(service: str) -> None:
    job = named(rendered("aws"), "Job", f"migrate-{service}")["spec"]["template"]
    assert restricted_faults(job["spec"]) == []
    (container,) = job["spec"]["containers"]
    assert container["args"] == ["--migrate"]
    url = {"SEALCOMB_DATABASE_URL": _environment(service, "aws")["SEALCOMB_DATABASE_URL"]}
    assert {entry["name"]: entry["value"] for entry in container["env"]} == url
    # Nothing selects it that selects the service: no call comes to it.
    labels = job["metadata"]["labels"]
    for document in of_kind(rendered("aws"), "Service"):
        selector = document["spec"]["selector"]
        assert not selector.items() <= labels.items()


def test_the_buckets_that_are_named_can_be_read_and_each_service_has_a_place_of_its_own() -> None:
    urls = [_environment(service, "aws")["SEALCOMB_OBJECTS_URL"] for service in ("vectorstore", "ingest")]
    buckets = [Bucket.from_url(url) for url in urls]
    assert len({(bucket.name, bucket.prefix) for bucket in buckets}) == 2
    assert all(bucket.prefix for bucket in buckets)


def test_pods_with_state_elsewhere_keep_nothing_of_their_own_but_the_ledger() -> None:
    for service in SERVICES:
        spec = named(rendered("aws"), "StatefulSet", service)["spec"]
        claims = [claim["metadata"]["name"] for claim in spec["volumeClaimTemplates"]]
        assert claims == (["ledger"] if service == "keyvault" else [])
        environment = _environment(service, "aws")
        assert environment["SEALCOMB_DATABASE_URL"].startswith("postgresql://")
        assert float(environment["SEALCOMB_STOP_NOTICE_S"]) > 0


def test_what_scales_by_itself_has_no_number_of_its_own_and_bounds() -> None:
    scalers = {
        one["metadata"]["name"]: one["spec"] for one in of_kind(rendered("aws"), "HorizontalPodAutoscaler")
    }
    assert set(scalers) == {"gateway", "ingest"}
    for service in SERVICES:
        document = named(rendered("aws"), "StatefulSet", service)
        assert ("replicas" in document["spec"]) == (service not in scalers)
        assert "cpu" in _pod_spec(service, "aws")["containers"][0]["resources"]["requests"]
        spread = _pod_spec(service, "aws")["topologySpreadConstraints"]
        assert all(one["labelSelector"]["matchLabels"]["app.kubernetes.io/name"] == service for one in spread)
    for name, spec in scalers.items():
        assert (spec["scaleTargetRef"]["kind"], spec["scaleTargetRef"]["name"]) == ("StatefulSet", name)
        assert 2 <= spec["minReplicas"] < spec["maxReplicas"] <= 20


@pytest.mark.parametrize("service", SERVICES)
def test_a_pod_has_time_to_stop(service: str) -> None:
    """G8: the notice, the drain and the calls in flight end before it is killed."""
    pod = _pod_spec(service, "aws")
    (container,) = pod["containers"]
    settings = _SETTINGS[service].model_fields
    notice = float(_environment(service, "aws")["SEALCOMB_STOP_NOTICE_S"])
    drain = settings["drain_s"].default if "drain_s" in settings else 20.0
    before = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert before + notice + drain + 10 < pod["terminationGracePeriodSeconds"]


@pytest.mark.parametrize("service", SERVICES)
def test_probes_ask_the_private_port_and_liveness_depends_on_nothing_else(service: str) -> None:
    """G9."""
    (container,) = _pod_spec(service, "local")["containers"]
    assert container["livenessProbe"]["httpGet"] == {"path": "/livez", "port": "ops"}
    assert container["startupProbe"]["httpGet"] == {"path": "/livez", "port": "ops"}
    assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "ops"}
    (port,) = (port["containerPort"] for port in container["ports"] if port["name"] == "ops")
    assert _environment(service, "local")["SEALCOMB_METRICS_PORT"] == str(port)


def _kube_keys(keys: Path, *options: str) -> list[Json]:
    command = [str(Path(sys.executable).with_name("sealcomb-kube-keys")), "--keys-dir", str(keys), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    items: list[Json] = json.loads(done.stdout)["items"]
    return items


def test_the_keys_that_pods_mount_are_the_keys_that_are_made(tmp_path: Path) -> None:
    items = _kube_keys(tmp_path / "keys", "--edge-host", "search.example.com")
    for item in items:
        kubernetes_validate.validate(item, "1.32", strict=True)
    made = {item["metadata"]["name"]: set(item["data"]) for item in items}
    for service in SERVICES:
        for volume in _pod_spec(service, "local")["volumes"]:
            if "secret" in volume:
                wanted = {entry["key"] for entry in volume["secret"].get("items", [])}
                assert wanted <= made[volume["secret"]["secretName"]]
            elif "configMap" in volume:
                assert volume["configMap"]["name"] in made
    (edge,) = (item for item in items if item["metadata"]["name"] == "sealcomb-edge-tls")
    certificate = x509.load_pem_x509_certificate(base64.b64decode(edge["data"]["tls.crt"]))
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert "search.example.com" in names.get_values_for_type(x509.DNSName)


def test_each_secret_holds_what_its_service_needs_and_no_more(tmp_path: Path) -> None:
    """C4: neither the authorities' keys nor the root key go where nobody needs them."""
    made = {i["metadata"]["name"]: set(i["data"]) for i in _kube_keys(tmp_path / "keys")}
    assert made["sealcomb-gateway-keys"] == {"context.key.pem", "token.pepper"}
    assert made["sealcomb-keyvault-keys"] == {"context.key.pem", "root.key"}
    assert "sealcomb-ca" not in made
    made = {i["metadata"]["name"]: set(i["data"]) for i in _kube_keys(tmp_path / "keys", "--no-root-key")}
    assert made["sealcomb-keyvault-keys"] == {"context.key.pem"}


def test_a_second_run_gives_the_same_keys(tmp_path: Path) -> None:
    assert _kube_keys(tmp_path / "keys") == _kube_keys(tmp_path / "keys")


def test_cert_manager_is_asked_for_the_names_that_peers_check(tmp_path: Path) -> None:
    items = _kube_keys(tmp_path / "keys", "--cert-manager", "--no-root-key")
    given = {item["metadata"]["name"] for item in items}
    issuers = of_kind(rendered("aws"), "Issuer")
    assert {issuer["metadata"]["name"] for issuer in issuers} == {"edge", "services"}
    for issuer in issuers:
        assert issuer["spec"]["ca"]["secretName"] in given
    for service in SERVICES:
        spec = named(rendered("aws"), "Certificate", service)["spec"]
        names = [name.value for name in service_names(service)]
        assert [*spec["uris"], *spec["dnsNames"]] == names
        assert spec["secretName"] == f"sealcomb-{service}-tls"
        assert spec["privateKey"]["rotationPolicy"] == "Always"
