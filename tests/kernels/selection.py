"""A pytest plugin for the guest: which tests run under emulation, and why the others do not."""

import os

import pytest

# Without arguments, the end-to-end tests whose outcome is the kernel's doing: all that
# bpf_redirect, bpf_fib_lookup, checksums and tc filters come to. An attach takes half a minute
# under emulation, and what the others test is Python, which is the same under all kernels.
CHOSEN = [
    "test_story.py",
    "test_requirements.py",
    "test_memory_limit.py",
    "test_ppp.py::test_hold_music_over_ppp",
    "test_links.py",
    "test_ppp.py::test_run_follows_a_pppoe_line",
    "test_forwarding.py::test_gateway_not_known_yet_is_asked_for",
    "test_forwarding.py::test_too_long_for_the_wan",
    "test_forwarding.py::test_headers_beyond_the_linear_area",
    "test_forwarding.py::test_interfaces_without_a_link_header[True-True]",
    "test_lifecycle.py::test_detach_leaves_no_trace",
    "test_real_sockets.py::test_hold_music_through_a_nat",
    "test_real_sockets.py::test_a_call_through_a_nat",
    "test_real_sockets.py::test_hold_music_merged_by_gro",
    "test_doctor.py::test_what_goes_past_a_flowtable_and_what_does_not",
    "test_events.py::test_time_to_music",
    "test_flip.py::test_udp[nat]",
    "test_flip.py::test_tcp[nat-partial]",
    "test_flip.py::test_messages_longer_than_a_segment[nat-True]",
    "test_flip.py::test_a_lost_segment_is_sent_again[nat-1]",
    "test_flip.py::test_a_lost_segment_is_sent_again[nat-10]",
    "test_flip.py::test_several_calls_in_one_packet[nat]",
    "test_flip.py::test_behind_the_sip_helper",
    "test_capture.py",
    "test_sides.py",
    "test_sip.py::test_a_call_and_its_hold_before_any_packet",
    "test_sip.py::test_music_that_is_too_long_for_an_endpoint_that_was_never_heard",
    "test_sip.py::test_sip_in_fragments",
    "test_sip.py::test_the_reader_is_killed",
]

# Never, whatever is asked for.
MEANINGLESS = {
    "test_oracle.py::test_the_sequences_reach_everything": "a check of the generator, "
    "which knows no kernel",
    "test_faults.py::test_killed_between_any_two_steps": "dozens of attaches under strace: hours "
    "under emulation",
    "test_faults.py::test_no_memory_at_any_step": "dozens of attaches under strace: hours under "
    "emulation",
    "test_lifecycle.py::test_peers_forgotten_after_the_timeout": "its timeout is shorter than one "
    "command takes under emulation",
    "test_load.py": "packets a second say nothing under emulation",
    "test_bench.py": "what packets and commands cost says nothing under emulation",
    "test_telephony.py": "calls in real time, and emulation is slower than that",
    "test_discover.py::test_a_silent_provider_and_its_sip": "calls in real time, and emulation is "
    "slower than that",
    "test_sip.py::test_a_call_that_begins_while_run_attaches": "SIP is kept for half a minute, "
    "and an attach takes longer than that under emulation",
    "test_sip.py::test_a_call_by_an_interface_that_run_attaches_to": "SIP is kept for half a "
    "minute, and an attach takes longer than that under emulation",
    "test_ha.py": "VRRP and calls in real time, and emulation is slower than that",
    "test_lab.py": "audio in real time, and emulation is slower than that",
    "test_watching.py": "watch's rates go by the second, and emulation is slower than that",
    "test_intervals.py": "watch's rates go by the second, and emulation is slower than that",
}
NOT_CHOSEN = "not run under emulation unless asked for: an attach takes half a minute there"


def matches(item: pytest.Item, pattern: str) -> bool:
    name = item.nodeid.rsplit("/", 1)[-1]
    return name == pattern or name.startswith((f"{pattern}::", f"{pattern}["))


def reason_against(item: pytest.Item, chosen_only: bool) -> str | None:
    for pattern, reason in MEANINGLESS.items():
        if matches(item, pattern):
            return reason
    end_to_end = item.path.parent.name != "packets"
    if chosen_only and end_to_end and not any(matches(item, pattern) for pattern in CHOSEN):
        return NOT_CHOSEN
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    chosen_only = os.environ["MOH_KERNEL_TESTS"] == "chosen"
    for item in items:
        if reason := reason_against(item, chosen_only):
            item.add_marker(pytest.mark.skip(reason=reason))
