"""Metrics of a firewall with calls on it, and Debian's Prometheus that scrapes them."""

import json
import os
import re
import shutil
import socket
import struct
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from moh_ebpf.kernel import libbpf
from tests.support.firewall import PROVIDER, PUBLIC, UCM, Firewall
from tests.support.service import CONFIG, service
from tests.support.waiting import until
from tests.support.wire import flow, rtp, udp

HOLD = f"{PUBLIC}:4000"
MUSIC = f"{UCM}:24576"
MONITORING = Path(__file__).parents[2] / "docs" / "monitoring"


def samples(text: str) -> dict[tuple[str, ...], float]:
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def get(fw: Firewall, url: str) -> str:
    with fw.namespace.entered(), urllib.request.urlopen(url, timeout=20) as answer:
        return answer.read().decode()


def promtool(*arguments: str, text: str | None = None) -> None:
    done = subprocess.run(
        ["promtool", *arguments], input=text, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_metrics_say_what_status_says(fw: Firewall, tmp_path: Path) -> None:
    fw.attach("--timeout", "60s")
    fw.wan.send(*[udp(PROVIDER, HOLD), udp("203.0.113.11:21000", f"{PUBLIC}:24576")] * 2)
    # The last of the music comes three times.
    fw.lan.send(udp(MUSIC, PROVIDER), *[udp(MUSIC, PROVIDER, rtp(2))] * 3)
    fw.lan.send(udp(MUSIC, "203.0.113.11:21000"), udp(MUSIC, "203.0.113.12:21000"))
    fw.wan.sent()
    shown = fw.moh("metrics").stdout
    promtool("check", "metrics", text=shown)
    found = samples(shown)
    counters = json.loads(fw.moh("status", "--json").stdout)["counters"]
    assert counters["rewritten"] == 4
    for (name, *labels), value in found.items():
        if name in ("moh_ebpf_packets_total", "moh_ebpf_state_changes_total"):
            assert value == counters[labels[0]], labels
    assert found["moh_ebpf_packets_total", "dropped_unidentified"] == 1
    assert found["moh_ebpf_peers", "moh"] == found["moh_ebpf_peers", "two"] == 1
    assert found["moh_ebpf_attached",] == 1
    until("who hears music is not silent", lambda: not silent_on_hold(fw))
    assert found["moh_ebpf_rtp_packets_expected_total", "out"] == 2
    assert found["moh_ebpf_rtp_packets_late_total", "out"] == 2

    file = tmp_path / "moh-ebpf.prom"
    fw.moh("metrics", "--output", str(file))
    assert samples(file.read_text()).keys() == found.keys()
    assert file.stat().st_mode & 0o777 == 0o644
    assert list(tmp_path.iterdir()) == [file]
    fw.moh("detach")
    assert samples(fw.moh("metrics").stdout)["moh_ebpf_attached",] == 0


def silent_on_hold(fw: Firewall) -> float:
    """Just after music: two seconds later it would be silent indeed."""
    fw.lan.send(udp(MUSIC, PROVIDER))
    return samples(fw.moh("metrics").stdout)["moh_ebpf_peers_silent", "moh"]


def test_bad_output_leaves_nothing(fw: Firewall, tmp_path: Path) -> None:
    done = fw.moh("metrics", "--output", str(tmp_path / "no" / "file"), check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    os.mkfifo(tmp_path / "pipe")
    done = fw.moh("metrics", "--output", str(tmp_path / "pipe"), check=False)
    assert done.returncode == 2
    assert (tmp_path / "pipe").is_fifo()  # nor would a device have been replaced
    (tmp_path / "pipe").unlink()
    (tmp_path / "dir").mkdir()
    done = fw.moh("metrics", "--output", str(tmp_path / "dir"), check=False)
    assert done.returncode == 2
    assert [each.name for each in tmp_path.iterdir()] == ["dir"]


def test_program_run_time_where_the_kernel_counts_it(fw: Firewall) -> None:
    fw.attach()
    with run_time_counted():
        fw.wan.send(*[udp(PROVIDER, HOLD)] * 10)
        fw.wan.sent()
    found = samples(fw.moh("metrics").stdout)
    assert found["moh_ebpf_program_runs_total", "learn"] >= 10
    assert found["moh_ebpf_program_run_seconds_total", "learn"] > 0


def test_rules_are_right_and_fire() -> None:
    assert shutil.which("promtool"), "scripts/setup --dev installs it"
    promtool("check", "rules", str(MONITORING / "alerts.yml"))
    promtool("test", "rules", str(MONITORING / "alerts-test.yml"))


@contextmanager
def prometheus(fw: Firewall, directory: Path, target: str) -> Iterator[str]:
    """Debian's Prometheus in the firewall's namespace, scraping a target; its URL."""
    config = directory / "prometheus.yml"
    config.write_text(
        "global: {scrape_interval: 1s, scrape_timeout: 1s}\n"
        f"rule_files: [{MONITORING / 'alerts.yml'}]\n"
        f"scrape_configs: [{{job_name: moh, static_configs: [{{targets: ['{target}']}}]}}]\n"
    )
    command = [
        "prometheus",
        f"--config.file={config}",
        f"--storage.tsdb.path={directory / 'data'}",
        "--web.listen-address=127.0.0.1:9090",
        "--log.level=error",
    ]
    with fw.namespace.entered():
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield "http://127.0.0.1:9090"
    finally:
        process.kill()
        process.wait()


def ask(fw: Firewall, url: str, query: str) -> list[dict[str, Any]]:
    """The series that Prometheus answers with."""
    try:
        answer = json.loads(get(fw, f"{url}/api/v1/query?query={urllib.parse.quote(query)}"))
    except OSError:
        return []  # it is not up yet
    return answer["data"]["result"]


def test_prometheus_scrapes_the_service(fw: Firewall, tmp_path: Path) -> None:
    def asked(query: str) -> list[dict[str, Any]]:
        return ask(fw, url, query)

    fw.namespace.run("nft", "insert", "rule", "ip", "filter", "input", "iifname", "lo", "accept")
    with (
        service(fw.namespace, tmp_path, CONFIG, "--metrics", "9477") as run,
        prometheus(fw, tmp_path, "127.0.0.1:9477") as url,
    ):
        run.wait_for_word("READY")
        for endpoint in ("203.0.113.11:21000", "203.0.113.12:21000"):
            fw.wan.send(*[udp(endpoint, f"{PUBLIC}:24576")] * 2)
            fw.lan.send(udp(MUSIC, endpoint))
        fw.wan.sent()
        (peers,) = until("both calls are scraped", lambda: asked('moh_ebpf_peers{state="two"} > 1'))
        assert peers["value"][1] == "2"
        # A scrape that takes longer than a second fails, and nothing is known until the next.
        attached = until("it is scraped", lambda: asked("moh_ebpf_attached"))
        assert [each["value"][1] for each in attached] == ["1"]
        # It is detached beneath its feet, and scraped on, until the service has it back.
        fw.namespace.run("tc", "filter", "del", "dev", "wan", "ingress", "pref", "4000")
        run.wait_for_line("somebody had removed learn on wan")

        def missing() -> float:  # what was seen within the last second is shown again
            return samples(get(fw, "http://127.0.0.1:9477/metrics"))["moh_ebpf_programs_missing",]

        until("none is missing", lambda: missing() == 0)
        assert run.stop() == 0


@contextmanager
def run_time_counted() -> Iterator[None]:
    """By a descriptor, not for the machine."""
    run_time = 0  # enum bpf_stats_type: BPF_STATS_RUN_TIME
    fd = libbpf.call("bpf_enable_stats", run_time)
    try:
        yield
    finally:
        os.close(fd)


def test_each_panel_of_the_dashboard_shows_something(fw: Firewall, tmp_path: Path) -> None:
    """What Grafana would ask of the Prometheus that scrapes the service. (Debian has no Grafana to
    load the file into.) A panel's legend names labels that its series have."""
    dashboard = json.loads((MONITORING / "dashboard.json").read_text())
    fw.namespace.run("nft", "insert", "rule", "ip", "filter", "input", "iifname", "lo", "accept")
    with (
        run_time_counted(),
        service(fw.namespace, tmp_path, CONFIG, "--metrics", "9477") as run,
        prometheus(fw, tmp_path, "127.0.0.1:9477") as url,
    ):

        def shown(target: dict[str, Any]) -> list[dict[str, Any]]:
            expr = target["expr"].replace("$instance", ".*").replace("$__rate_interval", "10s")
            assert "$" not in expr
            return until(f"{expr} has series", lambda: ask(fw, url, expr))

        run.wait_for_word("READY")
        fw.wan.send(*[udp(PROVIDER, HOLD)] * 3)
        fw.lan.send(*[udp(MUSIC, PROVIDER)] * 3)
        fw.wan.sent()
        for panel in dashboard["panels"]:
            for target in panel["targets"]:
                found = [each["metric"] for each in shown(target)]
                labels = re.findall(r"{{(\w+)}}", target["legendFormat"])
                legends = {tuple(each[label] for label in labels) for each in found}
                assert len(legends) == len(found), panel["title"]
        (variable,) = [each for each in dashboard["templating"]["list"] if each["type"] == "query"]
        label_values = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"]["query"])
        assert label_values
        metric, label = label_values.groups()
        found = until("it is scraped", lambda: ask(fw, url, metric))
        assert [each["metric"][label] for each in found] == ["127.0.0.1:9477"]
        assert run.stop() == 0


def test_a_port_in_use_does_not_keep_music_away(fw: Firewall, tmp_path: Path) -> None:
    """It attaches without, and has the port as soon as that is free."""
    fw.namespace.run("nft", "insert", "rule", "ip", "filter", "input", "iifname", "lo", "accept")
    with fw.namespace.entered():
        other = socket.create_server(("127.0.0.1", 9477))
    with other, service(fw.namespace, tmp_path, CONFIG, "--metrics", "127.0.0.1:9477") as run:
        said = run.wait_for_line("--metrics")
        assert "warning: --metrics 127.0.0.1:9477: Address already in use" in said
        run.wait_for_word("READY")
        fw.wan.send(udp(PROVIDER, HOLD))
        fw.lan.send(udp(MUSIC, PROVIDER))
        assert [flow(each) for each in fw.wan.sent()] == [(HOLD, PROVIDER)]
        other.close()
        run.wait_for_line("--metrics 127.0.0.1:9477: it is served there now")
        assert "moh_ebpf_attached 1.0" in get(fw, "http://127.0.0.1:9477/metrics")
        assert run.stop() == 0
        assert len([line for line in run.lines if "Address already in use" in line]) == 1


def test_a_port_that_is_forbidden_does_not_either(fw: Firewall, tmp_path: Path) -> None:
    """Without CAP_NET_BIND_SERVICE, as the unit has it; and it can be stopped meanwhile."""
    fw.namespace.sysctl("net.ipv4.ip_unprivileged_port_start", 9478)
    bounded = ("setpriv", "--bounding-set", "-net_bind_service", "--inh-caps", "-all")
    with service(fw.namespace, tmp_path, CONFIG, "--metrics", "9477", before=bounded) as run:
        run.wait_for_line("warning: --metrics 127.0.0.1:9477: Permission denied")
        run.wait_for_word("READY")
        assert run.stop() == 0
    assert fw.moh("status", check=False).returncode == 3


@pytest.mark.parametrize("address", ["9477x", "0", "example.org:9477", "127.0.0.1"])
def test_an_address_that_is_none_is_an_error(fw: Firewall, tmp_path: Path, address: str) -> None:
    with service(fw.namespace, tmp_path, CONFIG, "--metrics", address) as run:
        run.wait_for_line("is no address and port")
        assert run.process.wait(20) == 2


@pytest.mark.parametrize(
    ("address", "url"), [("192.0.2.200", "192.0.2.200"), ("fd00::9", "[fd00::9]")]
)
def test_an_address_that_comes_later(fw: Firewall, tmp_path: Path, address: str, url: str) -> None:
    """After a boot, hold music does not wait for it."""
    fw.namespace.sysctl("net.ipv6.conf.lo.disable_ipv6", 0)
    fw.namespace.run("nft", "insert", "rule", "ip", "filter", "input", "iifname", "lo", "accept")
    with service(fw.namespace, tmp_path, CONFIG, "--metrics", f"{url}:9477") as run:
        run.wait_for_line(f"warning: --metrics {address}:9477: there is no such address")
        run.wait_for_word("READY")
        fw.namespace.run("ip", "addr", "add", address, "dev", "lo")
        until("it is there", lambda: "tentative" not in fw.namespace.run("ip", "addr").stdout)
        assert "moh_ebpf_attached 1.0" in get(fw, f"http://{url}:9477/metrics")


def test_metrics_by_name_and_what_is_waited_for(fw: Firewall, tmp_path: Path) -> None:
    fw.namespace.run("nft", "insert", "rule", "ip", "filter", "input", "iifname", "lo", "accept")
    fw.add_tun("wan2", "192.0.2.2/32")
    config = CONFIG.replace('["wan"]', '["wan", "wan2"]')
    url = "http://127.0.0.1:9477/metrics?name[]=moh_ebpf_interfaces_missing"
    with service(fw.namespace, tmp_path, config, "--metrics", "9477") as run:
        run.wait_for_word("READY")
        samples = [line for line in get(fw, url).splitlines() if not line.startswith("#")]
        assert samples == ["moh_ebpf_interfaces_missing 0.0"]
        fw.namespace.run("ip", "link", "del", "wan2")
        run.wait_for_line("waiting for wan2")
        run.wait_for_line("interfaces have changed")
        until("it is shown", lambda: "moh_ebpf_interfaces_missing 1.0" in get(fw, url))


def test_a_client_that_goes_away_is_no_news(fw: Firewall, tmp_path: Path) -> None:
    """Resets before, in and after its request; the next one is served."""
    fw.namespace.run("nft", "insert", "rule", "ip", "filter", "input", "iifname", "lo", "accept")
    with service(fw.namespace, tmp_path, CONFIG, "--metrics", "[::1]:9477") as run:
        run.wait_for_word("READY")
        for request in (b"", b"GET /met", b"GET /metrics HTTP/1.1\r\n\r\n"):
            reset(fw, request)
        assert get(fw, "http://[::1]:9477/metrics").startswith("# HELP")
        assert run.stop() == 0
        run.wait_for_line("stopped; detached")
        assert not [line for line in run.lines if "Exception" in line or "Traceback" in line]


def connect(fw: Firewall, held: ExitStack) -> socket.socket:
    with fw.namespace.entered():
        made = socket.create_connection(("127.0.0.1", 9477), timeout=20)
    return held.enter_context(made)


def test_clients_that_hold_the_line_give_way(fw: Firewall, tmp_path: Path) -> None:
    """Those who have waited longest, beyond a few: the descriptors are the service's."""
    fw.namespace.run("nft", "insert", "rule", "ip", "filter", "input", "iifname", "lo", "accept")
    with service(fw.namespace, tmp_path, CONFIG, "--metrics", "9477") as run, ExitStack() as held:
        run.wait_for_word("READY")
        get(fw, "http://127.0.0.1:9477/metrics")
        descriptors = Path(f"/proc/{run.process.pid}/fd")
        before = len(list(descriptors.iterdir()))
        clients = [connect(fw, held) for _ in range(40)]
        clients[-1].sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        assert clients[-1].recv(5) == b"HTTP/"
        assert all(each.recv(1) == b"" for each in clients[:24])
        until(
            "their descriptors are closed", lambda: len(list(descriptors.iterdir())) <= before + 16
        )
        assert get(fw, "http://127.0.0.1:9477/metrics") != ""
        assert run.stop() == 0


def test_who_sends_byte_by_byte_has_no_place_for_long(fw: Firewall, tmp_path: Path) -> None:
    """A whole request must come in time, however often there is a byte of it."""
    fw.namespace.run("nft", "insert", "rule", "ip", "filter", "input", "iifname", "lo", "accept")
    with service(fw.namespace, tmp_path, CONFIG, "--metrics", "9477") as run, ExitStack() as held:
        run.wait_for_word("READY")
        client = connect(fw, held)
        client.sendall(b"GET /metrics HTTP/1.1\r\nX: ")
        client.setblocking(False)  # with a timeout, recv would wait, and no byte be sent meanwhile

        def is_let_go() -> bool:
            try:
                client.sendall(b"x")
                return client.recv(1) == b""
            except BlockingIOError:
                return False
            except OSError:
                return True

        until("it is let go", is_let_go)
        assert run.stop() == 0


def test_who_scrapes_in_a_loop_has_no_core(fw: Firewall, tmp_path: Path) -> None:
    fw.namespace.run("nft", "insert", "rule", "ip", "filter", "input", "iifname", "lo", "accept")
    with service(fw.namespace, tmp_path, CONFIG, "--metrics", "9477") as run:
        run.wait_for_word("READY")
        get(fw, "http://127.0.0.1:9477/metrics")
        used, begun = cpu_seconds(run.process.pid), time.monotonic()
        for _ in range(100):
            get(fw, "http://127.0.0.1:9477/metrics")
        took = time.monotonic() - begun
        assert (cpu_seconds(run.process.pid) - used) / took < 0.5
        assert 100 / took < 60
        assert run.stop() == 0


def cpu_seconds(process: int) -> float:
    """What all threads of a process have had of the CPUs."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def reset(fw: Firewall, request: bytes) -> None:
    with fw.namespace.entered(), socket.create_connection(("::1", 9477), timeout=20) as client:
        client.sendall(request)
        linger_no_time = struct.pack("ii", 1, 0)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger_no_time)
