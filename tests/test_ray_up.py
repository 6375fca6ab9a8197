"""Goal: `ray up` with the shipped configs gives a cluster that is whole, closed and quick to heal.

Method: Ray's own schema, and own checks of what it lets through; a simulated EC2 for the launch of
the head; and three hosts in namespaces for the whole way, up to the death of a machine. Everything
that is started runs in a lab (hosts.py) and ends with it. Needs root: without, it says so.
"""

import copy
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import botocore.session
import pytest
import yaml
from botocore.validate import ParamValidator

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
from hosts import Lab  # noqa: E402

FILES = ("ray-local", "ray-aws")
TUNED = {  # what notices a dead machine in about 3 s, a frozen one in about 10
    "RAY_health_check_initial_delay_ms": 1_000,
    "RAY_health_check_period_ms": 1_000,
    "RAY_health_check_timeout_ms": 2_000,
    "RAY_health_check_failure_threshold": 3,
}
UP_S = 90.0  # from `ray up` to three machines
DEATH_S = 30.0  # until a machine without a network is given up; 64 s without tuning
as_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="network namespaces need root, this is uid " + str(os.geteuid())
)


def shipped(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / "configs" / f"{name}.yaml").read_text())


# --- the files


def refused(config: dict[str, Any]) -> str:
    """What Ray's schema says against a config, or nothing."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    try:
        validate_config(prepare_config(copy.deepcopy(config)))
    except Exception as error:
        return str(error) or type(error).__name__
    return ""


def wrong_nodes(config: dict[str, Any]) -> list[str]:
    """What EC2 would refuse of the node_configs; Ray's schema does not look at them."""
    model = botocore.session.get_session().get_service_model("ec2")
    launch = model.operation_model("RunInstances").input_shape
    assert launch is not None
    kinds: list[str] = getattr(model.shape_for("InstanceType"), "enum", [])
    found: list[str] = []
    for name, kind in config["available_node_types"].items():
        node = kind["node_config"]
        report = ParamValidator().validate({**node, "MinCount": 1, "MaxCount": 1}, launch)
        if report.has_errors():
            found.append(f"{name}: {report.generate_report()}")
        if node.get("InstanceType") not in kinds:
            found.append(f"{name}: no instance type `{node.get('InstanceType')}`")
    return found


@pytest.mark.parametrize("name", FILES)
def test_ray_takes_the_file(name: str) -> None:
    config = shipped(name)
    assert refused(config) == ""
    assert "foo" in refused({**config, "foo": 1})  # the schema does look


def test_ray_takes_the_local_file_as_it_stands() -> None:
    from ray.autoscaler._private.util import prepare_config

    config = shipped("ray-local")
    assert prepare_config(copy.deepcopy(config)) == config  # else it refuses node types at `ray up`
    kind = config["available_node_types"]["local.cluster.node"]
    workers = len(config["provider"]["worker_ips"])
    assert kind["min_workers"] == kind["max_workers"] == config["max_workers"] == workers
    assert kind["resources"]["CPU"] >= 1  # without, the autoscaler finds no machine for anything


def test_ec2_knows_what_the_nodes_ask_for() -> None:
    config = shipped("ray-aws")
    assert wrong_nodes(config) == []
    head = config["available_node_types"]["head"]["node_config"]
    head["InstanceTyp"] = head.pop("InstanceType")
    config["available_node_types"]["gpu"]["node_config"]["InstanceType"] = "g5.huge"
    assert refused(config) == ""  # which is why there is a check of our own
    assert len(wrong_nodes(config)) == 3  # an unknown key, a missing type, a type that is none


def test_the_cloud_has_bounds_and_a_wall() -> None:
    config = shipped("ray-aws")
    kinds = config["available_node_types"]
    assert set(kinds) == {"head", "cpu", "gpu"}
    assert kinds["gpu"]["min_workers"] == 0  # no GPU is paid for before one is asked for
    assert config["max_workers"] == sum(kinds[k]["max_workers"] for k in ("cpu", "gpu"))
    for kind in kinds.values():
        assert kind["node_config"]["SecurityGroupIds"]  # without, Ray opens port 22 to the world
        assert kind["node_config"]["MetadataOptions"]["HttpTokens"] == "required"


@pytest.mark.parametrize("name", FILES)
def test_every_start_wants_the_token_and_notices_death(name: str) -> None:
    config = shipped(name)
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    head, worker = config["head_start_ray_commands"], config["worker_start_ray_commands"]
    for commands in (head, worker):
        assert commands[0] == "ray stop"
        assert "RAY_AUTH_MODE=token" in commands[1]
    for variable, value in TUNED.items():
        assert f"{variable}={value}" in head[1]
    assert "--dashboard-host=127.0.0.1" in head[1]
    kinds = config["available_node_types"]
    no_cpu = "--num-cpus=0" in head[1] or kinds[config["head_node_type"]]["resources"]["CPU"] == 0
    assert no_cpu  # nothing that scores is placed on the head


@pytest.mark.parametrize("name", FILES)
def test_every_line_with_an_address_or_a_key_says_that_it_is_yours(name: str) -> None:
    lines = (ROOT / "configs" / f"{name}.yaml").read_text().splitlines()
    own = re.compile(
        r"\d+\.\d+\.\d+\.\d+|_ip:|_ips:|ssh_private_key:|region:|_zone:|Type: [a-z]\d|sg-"
    )
    local = re.compile(r"127\.0\.0\.1|m6i\.xlarge|^ *#|use_internal")
    mine = [line for line in lines if own.search(line) and not local.search(line)]
    assert len(mine) >= 3
    for line in mine:
        assert "# EDIT" in line, line


# --- the cloud

BEFORE = """
import boto3
ec2 = boto3.client("ec2")
vpc = ec2.describe_vpcs()["Vpcs"][0]["VpcId"]
group = ec2.create_security_group(GroupName="raywatch", Description="r", VpcId=vpc)["GroupId"]
own = {"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": group}]}
ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[own])
print(group, ec2.describe_images()["Images"][0]["ImageId"])
"""
LOOK = """
import boto3, json
ec2, iam = boto3.client("ec2"), boto3.client("iam")
nodes = [i for r in ec2.describe_instances()["Reservations"] for i in r["Instances"]]
groups = ec2.describe_security_groups()["SecurityGroups"]
groups = [g for g in groups if g["GroupName"] != "default"]
print(json.dumps([nodes, groups, [r["RoleName"] for r in iam.list_roles()["Roles"]]], default=str))
"""


@pytest.fixture
def cloud() -> Iterator[tuple[Lab, dict[str, str]]]:
    """A lab with a simulated EC2 in it, and the environment that leads there."""
    env = {
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "y",
        "AWS_DEFAULT_REGION": "eu-central-1",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:5555",
        "AWS_EC2_METADATA_DISABLED": "true",
        "MOTO_IAM_LOAD_MANAGED_POLICIES": "true",  # the launcher attaches two of Amazon's
        "RAY_UP_enable_autoscaler_v2": "1",
    }
    serve = "from moto.server import main; main(['-H', '127.0.0.1', '-p', '5555'])"
    with Lab(0) as lab:
        lab.run(["bash", "-c", f'python -c "{serve}" > moto.log 2>&1 &'], timeout_s=10, env=env)
        wait = "until timeout 1 bash -c 'exec 3<>/dev/tcp/127.0.0.1/5555' 2>&1; do sleep 0.2; done"
        lab.run(["bash", "-c", wait], timeout_s=40)
        yield lab, env


@pytest.mark.netns
@as_root
def test_the_cloud_gets_a_head_and_gives_it_back(cloud: tuple[Lab, dict[str, str]]) -> None:
    lab, env = cloud
    own, image = lab.run(["python", "-c", BEFORE], timeout_s=30, env=env).stdout.split()
    config = shipped("ray-aws")
    for kind in config["available_node_types"].values():
        kind["node_config"]["SecurityGroupIds"] = [own]
        kind["node_config"]["ImageId"] = image  # the simulation does not have Ray's default
    file = lab.home / "ray-aws.yaml"
    file.write_text(yaml.safe_dump(config))
    lab.run(["ray", "get-auth-token", "--generate"], timeout_s=30)
    (lab.home / "dist").mkdir()
    up = f"echo $$ > up.pid; exec timeout 120 ray up -y --no-config-cache {file} > up.log 2>&1"
    lab.run(["bash", "-c", f"nohup bash -c '{up}' > /dev/null &"], timeout_s=10, env=env)

    def look() -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[str]]:
        nodes, groups, roles = json.loads(
            lab.run(["python", "-c", LOOK], timeout_s=30, env=env).stdout
        )
        return nodes, groups, roles

    nodes, groups, roles = until(look, lambda seen: len(seen[0]) == 1, limit_s=60)
    lab.run(["bash", "-c", "kill $(cat up.pid)"], timeout_s=10)  # it would wait for SSH for ever
    (head,) = nodes
    tags = {t["Key"]: t["Value"] for t in head["Tags"]}
    assert head["InstanceType"] == "m6i.xlarge"
    assert (tags["ray-cluster-name"], tags["ray-node-type"]) == ("raywatch", "head")
    assert tags["ray-user-node-type"] == "head"
    assert head["MetadataOptions"]["HttpTokens"] == "required"
    assert roles == ["ray-autoscaler-v1"]
    assert [g["GroupId"] for g in head["SecurityGroups"]] == [own]
    (group,) = groups  # Ray made none of its own, and opened nothing in ours
    assert "0.0.0.0/0" not in json.dumps(group["IpPermissions"])
    lab.run(["ray", "down", "-y", str(file)], timeout_s=60, env=env)
    until(look, lambda seen: seen[0][0]["State"]["Name"] in ("shutting-down", "terminated"), 30)


def until(look: Callable[[], Any], good: Callable[[Any], bool], limit_s: float) -> Any:
    """Look once a second until it is good; returns what was seen."""
    ends = time.monotonic() + limit_s
    while not good(seen := look()):
        assert time.monotonic() < ends, f"not within {limit_s:.0f} s, but: {seen}"
        time.sleep(1.0)
    return seen


# --- three machines

SPREAD = """
import ray
ray.init(address="auto", log_to_driver=False, logging_level="ERROR")
@ray.remote(num_cpus=1, scheduling_strategy="SPREAD")
class Where:
    def ip(self):
        return ray.util.get_node_ip_address()
actors = [Where.remote() for _ in range(4)]
print("on", *sorted(set(ray.get([a.ip.remote() for a in actors], timeout=60))))
"""


class Machines:
    """A cluster on three hosts, started by `ray up` with the shipped file."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        config = shipped("ray-local")
        config["provider"]["head_ip"] = lab.address(1)
        config["provider"]["worker_ips"] = [lab.address(2), lab.address(3)]
        config["auth"] = {"ssh_user": "root", "ssh_private_key": str(lab.key)}
        config["available_node_types"]["local.cluster.node"]["resources"] = {"CPU": 2}
        self.file = lab.home / "ray-local.yaml"
        self.file.write_text(yaml.safe_dump(config))

    def up(self) -> None:
        self.lab.run(["ray", "get-auth-token", "--generate"], timeout_s=30)
        self.lab.run(["ray", "up", "-y", "--no-config-cache", str(self.file)], timeout_s=UP_S)

    def on_head(self, command: str, *, timeout_s: float = 60.0) -> str:
        """Run a shell command on the head, as an operator there would; returns what it said."""
        said = self.lab.on(1, f"export RAY_AUTH_MODE=token; {command}", timeout_s=timeout_s)
        return said.stdout

    def alive(self) -> list[str]:
        """Addresses of the machines that Ray believes to be alive."""
        said = self.on_head("ray list nodes --format json 2> /dev/null || echo '[]'")
        return sorted(n["node_ip"] for n in json.loads(said) if n["state"] == "ALIVE")

    def down(self) -> None:
        """`ray down`, and `ray stop` on each machine: the first one leaves workers running."""
        self.lab.run(["ray", "down", "-y", str(self.file)], timeout_s=60, check=False)
        for host in range(1, self.lab.hosts + 1):
            self.lab.on(host, "ray stop --force", timeout_s=40, check=False)


@pytest.fixture
def machines() -> Iterator[Machines]:
    with Lab(3) as lab:
        yield Machines(lab)


@pytest.mark.netns
@as_root
def test_three_machines_come_up_work_lose_one_and_go_down(machines: Machines) -> None:
    lab = machines.lab
    every = [lab.address(host) for host in (1, 2, 3)]
    began = time.monotonic()
    machines.up()
    until(machines.alive, lambda seen: seen == every, UP_S - (time.monotonic() - began))
    assert "3 local.cluster.node" in machines.on_head("ray status")

    script = lab.home / "spread.py"
    script.write_text(SPREAD)
    said = machines.on_head(f"python {script}")
    assert f"on {every[1]} {every[2]}" in said  # work goes to the workers, never to the head

    stranger = f"HOME=/tmp RAY_AUTH_MODE=disabled ray status --address={every[0]}:6379"
    assert lab.on(2, stranger, timeout_s=60, check=False).returncode != 0  # no token, no answer

    lab.cut(3)
    cut = time.monotonic()
    until(machines.alive, lambda seen: seen == every[:2], DEATH_S)
    assert time.monotonic() - cut < DEATH_S
    lab.cut(3, whole=True)

    machines.down()
    for host in (1, 2, 3):
        left = lab.on(host, "ps axo comm | grep -c -e raylet -e gcs_server || true", timeout_s=20)
        assert left.stdout.strip() == "0", f"host {host}"
