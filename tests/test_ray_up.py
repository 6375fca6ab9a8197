"""Goal: `ray up` takes the shipped configs, and they give a cluster that is bounded and closed.

Method: Ray's own schema, and own checks of what it lets through; a simulated EC2 for the launch of
the head, which runs in a lab (hosts.py) and ends with it: that needs root, and says so. The whole
way over three machines is in test_deploy.py.
"""

import copy
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import botocore.session
import pytest
import yaml
from botocore.validate import ParamValidator
from hosts import Lab
from machines import shipped, until

ROOT = Path(__file__).resolve().parent.parent
FILES = ("ray-local", "ray-aws")
TUNED = {  # what notices a dead machine in about 3 s, a frozen one in about 10
    "RAY_health_check_initial_delay_ms": 1_000,
    "RAY_health_check_period_ms": 1_000,
    "RAY_health_check_timeout_ms": 2_000,
    "RAY_health_check_failure_threshold": 3,
}
as_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="network namespaces need root, this is uid " + str(os.geteuid())
)


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
