#!/usr/bin/env python3
"""The manifests of deploy/kubernetes:  test_kubernetes.py SOURCE_DIR ALLUVIUM

- valid, --strict, for an old and the newest version of Kubernetes (kubernetes-validate, scripts/fetch-validator)
- what the schemas cannot see: selectors find their pods, probes and services their ports, claims their volumes; every container is
  locked down; the arguments are options that the program has; the container's user can read the join file
"""
import glob
import os
import subprocess
import sys

SOURCE, ALLUVIUM = sys.argv[1:3]
VALIDATOR = os.path.join(SOURCE, "build", "validator")
if not os.path.isdir(VALIDATOR):
    sys.exit("kubernetes-validate is missing (scripts/fetch-validator)")
sys.path.insert(0, VALIDATOR)
import yaml  # noqa: E402

from rig import end, expect  # noqa: E402

VERSIONS = ("1.29.0", "1.37.0")


def validate(*files):
    for version in VERSIONS:
        r = subprocess.run([sys.executable, "-m", "kubernetes_validate", "-k", version, "--strict", *files], capture_output=True, text=True,
                           env={**os.environ, "PYTHONPATH": VALIDATOR})
        expect(r.returncode == 0 and "passed" in r.stdout + r.stderr, f"Kubernetes {version} to take {files}: {r.stdout}{r.stderr}")


def load(path):
    with open(path, encoding="utf-8") as f:
        return [d for d in yaml.safe_load_all(f) if d]


def resources(folder):
    """What kustomize would make, less names of images and the namespace."""
    kustomization = load(os.path.join(folder, "kustomization.yaml"))[0]
    files = [os.path.join(folder, name) for name in kustomization["resources"]]
    unused = set(glob.glob(os.path.join(folder, "*.yaml"))) - set(files) - {os.path.join(folder, "kustomization.yaml")}
    expect(not unused, f"every manifest to be named: {unused}")
    validate(*files)
    expect(kustomization["namespace"] == "alluvium", "the namespace")
    secrets = [{"kind": "Secret", "metadata": {"name": s["name"]}, "data": {f: "" for f in s["files"]}} for s in kustomization.get("secretGenerator", [])]
    return [d for f in files for d in load(f)] + secrets


def of(everything, kind):
    return [d for d in everything if d["kind"] == kind]


def selects(selector, labels):
    return all(labels.get(k) == v for k, v in selector.items())


def check_container(c, where):
    security = c["securityContext"]
    expect(security["readOnlyRootFilesystem"] and not security["allowPrivilegeEscalation"] and security["capabilities"] == {"drop": ["ALL"]},
           f"{where} to be locked down: {security}")
    expect(c["resources"]["requests"] and "memory" in c["resources"]["limits"], f"{where} to say what it needs")


def check_probes(c, where):
    ports = {p["name"] for p in c.get("ports", [])}
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        probe = c[name]
        if "httpGet" in probe:
            path = "/livez" if name == "livenessProbe" else "/readyz"
            expect(probe["httpGet"]["path"] == path and probe["httpGet"]["port"] in ports, f"{where}'s {name}: {probe}")
        else:
            expect(probe["exec"]["command"][:2] == ["sh", "-c"] and "/state/lock" in probe["exec"]["command"][2], f"{where}'s {name}: {probe}")


def check_set(s, everything):
    where, spec = s["metadata"]["name"], s["spec"]
    pod, labels = spec["template"]["spec"], spec["template"]["metadata"]["labels"]
    expect(selects(spec["selector"]["matchLabels"], labels), f"{where} to select its own pods")
    expect(pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] > 0, f"{where} not to run as root")
    expect(pod["enableServiceLinks"] is False and pod["automountServiceAccountToken"] is False, f"{where} to get no variables and no token of the cluster")
    expect(pod["terminationGracePeriodSeconds"] >= 60, f"{where} to have time to stop")
    services = [d for d in of(everything, "Service") if d["metadata"]["name"] == spec["serviceName"]]
    expect(len(services) == 1 and selects(services[0]["spec"]["selector"], labels), f"{where}'s service to find its pods")
    for budget in of(everything, "PodDisruptionBudget"):
        if budget["metadata"]["name"] == where:
            expect(selects(budget["spec"]["selector"]["matchLabels"], labels), f"{where}'s budget to find its pods")
    expect(any(selects(n["spec"]["podSelector"]["matchLabels"], labels) for n in of(everything, "NetworkPolicy")), f"a network policy for {where}")

    volumes = {v["name"] for v in pod["volumes"]} | {t["metadata"]["name"] for t in spec["volumeClaimTemplates"]}
    claims = {d["metadata"]["name"] for d in of(everything, "PersistentVolumeClaim")}
    for v in pod["volumes"]:
        expect(v.get("persistentVolumeClaim", {}).get("claimName") in claims | {None}, f"{where}'s claim: {v}")
        if "secret" in v:
            names = [d for d in of(everything, "Secret") if d["metadata"]["name"] == v["secret"]["secretName"]]
            expect(len(names) == 1, f"{where}'s secret: {v}")
            expect(v["secret"]["defaultMode"] == 0o440 and "fsGroup" in pod["securityContext"], f"{where}'s user to be able to read its secret")
    for c in pod.get("initContainers", []) + pod["containers"]:
        check_container(c, f"{where}/{c['name']}")
        expect({m["name"] for m in c["volumeMounts"]} <= volumes, f"{where}/{c['name']} to mount what there is")
    for c in pod["containers"]:
        check_probes(c, f"{where}/{c['name']}")
        shown = subprocess.run([ALLUVIUM, *c["args"], "--show-settings"], capture_output=True, text=True)
        expect(shown.returncode == 0, f"the program to take {where}'s arguments: {shown.stderr}")
        if services and services[0]["spec"].get("ports"):
            expect({p["port"] for p in services[0]["spec"]["ports"]} <= {p["containerPort"] for p in c["ports"]}, f"{where}'s ports to be served")


folders = [os.path.join(SOURCE, "deploy/kubernetes", name) for name in ("coordinator", "workers")]
everything = [d for folder in folders for d in resources(folder)]
expect(len(of(everything, "StatefulSet")) == 2 and len(of(everything, "PodDisruptionBudget")) == 2, "two sets and their budgets")
for s in of(everything, "StatefulSet"):
    check_set(s, everything)
end()
