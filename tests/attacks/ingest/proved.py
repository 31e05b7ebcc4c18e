"""The rows whose attacks are tests: which ones, and which of them are their twins.

A place is a file below tests, or a test in it; parameters are attacks of their own. One run of pytest for
all of them; what it says is counted for each row.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
_EGRESS = "ingest/egress/test_client.py"
_OAUTH = "ingest/oauth/test_connections.py"
_LEASES = "ingest/connections/test_leases.py"
_JOBS = "ingest/jobs/test_ingestions.py"
_HOSTILE = "ingest/jobs/test_hostile_sources.py"
_TOKENS = "ingest/jobs/test_temporary_tokens.py"
_SANDBOX = "ingest/test_sandbox.py"
_TWINS = "attacks/test_ingest_twins.py"
_FAILURE_LINES = 40


@dataclass(frozen=True, slots=True)
class Proved:
    """A row of the catalogue, its attacks, and its twins."""

    row: str
    attack: str
    tests: tuple[str, ...]
    twins: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How many tests of a row there were, and how many of them passed."""

    tests: int
    passed: int
    twins: int
    twins_red: int
    # What went wrong, with the end of its traceback.
    failures: tuple[str, ...] = ()


PROVED = (
    Proved(
        "E3",
        "token to another host: redirects, settings, other headers",
        (
            f"{_EGRESS}::test_no_redirect_carries_the_token_to_another_origin",
            f"{_EGRESS}::test_the_same_host_on_another_port_is_another_origin",
            f"{_EGRESS}::test_a_redirect_back_does_not_bring_the_token_back",
            f"{_EGRESS}::test_a_token_is_never_sent_to_a_first_address_outside_its_hosts",
            f"{_EGRESS}::test_no_other_header_moves_a_request",
            f"{_EGRESS}::test_a_post_is_not_redirected",
            f"{_JOBS}::test_settings_name_no_other_host_than_the_connections",
            f"{_HOSTILE}::test_each_hostile_answer_is_a_typed_failure_of_its_item_alone",
        ),
        (
            f"{_TWINS}::test_headers_that_go_along_give_the_token_away",
            f"{_EGRESS}::test_a_client_that_keeps_headers_would_have_given_the_token_away",
        ),
    ),
    Proved(
        "E4",
        "token in an address, in another header, or ending its line",
        (
            f"{_EGRESS}::test_a_header_cannot_end_its_line",
            "ingest/sources/test_contract.py::test_the_token_is_in_the_authorization_header_alone",
            "ingest/sources/test_contract.py::"
            "test_a_token_with_characters_that_tokens_do_not_have_is_sent_nowhere",
        ),
        (f"{_TWINS}::test_a_header_that_is_written_as_it_comes_begins_another",),
    ),
    Proved(
        "E5",
        "state missing, used, expired, another's; completed twice",
        (
            f"{_OAUTH}::test_a_state_is_for_one_use",
            f"{_OAUTH}::test_of_two_who_complete_one_wins",
            "client/test_sources.py::test_connecting_takes_the_redirect_and_nothing_else",
        ),
        (f"{_TWINS}::test_a_state_that_is_not_of_an_account_is_found_by_everybody",),
    ),
    Proved(
        "E6",
        "challenge stripped, verifier of another flow",
        (
            "ingest/connections/test_oauth.py::test_the_challenge_is_the_one_of_the_rfc",
            "ingest/connections/test_oauth.py::test_parameters_of_the_profile_replace_none_of_ours",
            f"{_OAUTH}::test_a_verifier_of_another_flow_redeems_nothing",
            f"{_OAUTH}::test_a_provider_that_wants_a_challenge_refuses_one_that_was_stripped",
        ),
        (f"{_TWINS}::test_without_challenge_and_verifier_a_stolen_code_is_redeemed",),
    ),
    Proved(
        "E7",
        "code of one provider sent to another",
        (f"{_OAUTH}::test_a_code_of_another_provider_goes_nowhere",),
        (f"{_OAUTH}::test_without_the_issuer_check_the_code_would_be_sent",),
    ),
    Proved(
        "E8",
        "redirect addresses that are not registered",
        (f"{_OAUTH}::test_a_redirect_that_is_not_registered_is_refused",),
        (f"{_TWINS}::test_a_redirect_that_is_compared_by_its_beginning_leads_anywhere",),
    ),
    Proved(
        "E9",
        "another account completes a flow",
        (f"{_OAUTH}::test_a_flow_is_of_the_account_that_began_it",),
        (f"{_TWINS}::test_a_state_that_is_not_of_an_account_is_found_by_everybody",),
    ),
    Proved(
        "E10",
        "refreshers and disconnections that cross",
        (_LEASES, "ingest/oauth/test_disconnect.py", f"{_OAUTH}::test_tokens_are_refreshed_one_at_a_time"),
        (
            f"{_LEASES}::test_without_the_lease_the_family_is_revoked",
            f"{_OAUTH}::test_the_provider_notices_a_refresh_token_that_is_used_twice",
            "ingest/oauth/test_disconnect.py::test_without_the_end_of_its_jobs_the_source_is_still_reached",
        ),
    ),
    Proved(
        "E11",
        "ids of another account",
        (f"{_JOBS}::test_another_account_sees_nothing_of_it",),
        (f"{_TWINS}::test_an_ingestion_that_is_found_by_its_id_alone_is_everybodys",),
    ),
    Proved(
        "E12",
        "less granted than asked",
        (f"{_OAUTH}::test_less_than_was_asked_for_is_no_connection",),
        (f"{_TWINS}::test_without_challenge_and_verifier_a_stolen_code_is_redeemed",),
    ),
    Proved(
        "E13",
        "a provider that was taken over answers anything",
        (
            "ingest/connections/test_oauth.py::test_what_a_provider_answers_is_checked_and_never_repeated",
            "ingest/connections/test_oauth.py::test_no_user_is_sent_to_an_address_that_is_not_https",
            f"{_EGRESS}::test_libraries_with_their_own_client_are_bound_to_the_providers_hosts",
        ),
        (f"{_EGRESS}::test_without_the_limits_the_same_answers_are_taken",),
    ),
    Proved(
        "E17",
        "addresses in other clothes",
        ("ingest/egress/test_addresses.py", "ingest/egress/test_target.py"),
        ("ingest/egress/test_addresses.py::test_the_standard_library_would_let_metadata_through",),
    ),
    Proved(
        "E18",
        "answers endless, slow, huge, packed, lying; listings without an end",
        (
            f"{_EGRESS}::test_a_hostile_answer_ends_within_limits",
            f"{_HOSTILE}::test_each_hostile_answer_is_a_typed_failure_of_its_item_alone",
            f"{_HOSTILE}::test_a_folder_of_too_many_names_ends_with_a_reason",
            f"{_HOSTILE}::test_a_listing_that_names_nothing_and_never_ends_is_ended",
        ),
        (f"{_EGRESS}::test_without_the_limits_the_same_answers_are_taken",),
    ),
    Proved(
        "E19-20",
        "zip, Flate, entry, page and mail bombs",
        (f"{_SANDBOX}::test_a_bomb_is_stopped_within_bounds_and_the_next_document_is_read",),
        ("attacks/test_ingest_images.py::test_a_decoder_unpacks_what_it_is_given",),
    ),
    Proved(
        "E21",
        "a parser that was taken over",
        (
            f"{_SANDBOX}::test_a_parser_that_is_taken_over_reaches_nothing",
            f"{_SANDBOX}::test_a_child_that_dies_or_answers_garbage_is_a_typed_refusal",
            f"{_SANDBOX}::test_the_child_inherits_no_variable_and_no_descriptor",
        ),
        (f"{_SANDBOX}::test_the_twin_without_the_sandbox_the_same_attempts_succeed",),
    ),
    Proved(
        "E22",
        "external entities",
        (f"{_SANDBOX}::test_external_entities_bring_nothing_in",),
        (f"{_TWINS}::test_a_parser_that_resolves_entities_brings_a_file_in",),
    ),
    Proved(
        "E23",
        "formats that are not what they say",
        (
            "ingest/test_formats.py",
            "ingest/test_documents.py::test_bad_uploads_name_their_field_and_leave_nothing",
        ),
        (f"{_TWINS}::test_a_format_that_is_believed_is_a_programs_own",),
    ),
    Proved(
        "E24",
        "names with paths, controls, escapes",
        (
            f"{_HOSTILE}::test_no_name_is_more_than_a_name",
            "client/test_cli.py::test_a_download_under_a_hostile_name_stays_in_the_current_folder",
        ),
        (f"{_TWINS}::test_a_name_that_is_taken_as_it_comes_commands_a_terminal",),
    ),
    Proved(
        "E26",
        "an item that kills its worker",
        ("ingest/jobs/test_kill.py::test_an_item_that_kills_its_worker_is_set_aside",),
        (f"{_TWINS}::test_starts_that_are_not_counted_go_on_for_ever",),
    ),
    Proved(
        "E27",
        "kill -9 anywhere in a job: each item once",
        (
            "ingest/jobs/test_kill.py::test_kills_anywhere_leave_each_item_once_and_new",
            f"{_JOBS}::test_the_same_idempotency_key_begins_one_ingestion",
            "ingest/jobs/test_store.py",
        ),
        (f"{_TWINS}::test_a_document_without_an_id_of_its_own_is_there_twice",),
    ),
    Proved(
        "E28",
        "images of 50,000 x 50,000 pixels",
        (
            "attacks/test_ingest_images.py::test_an_image_alone_is_not_taken_at_all",
            "attacks/test_ingest_images.py::test_an_image_in_a_document_is_not_unpacked",
        ),
        ("attacks/test_ingest_images.py::test_a_decoder_unpacks_what_it_is_given",),
    ),
    Proved(
        "E29",
        "deleted, forbidden, moved at the source",
        (
            f"{_JOBS}::test_a_retry_brings_the_source_and_the_collection_in_step",
            f"{_JOBS}::test_a_changed_item_that_cannot_be_read_is_not_found_any_more",
            "ingest/jobs/test_listings.py",
        ),
        (f"{_TWINS}::test_a_listing_that_removes_nothing_keeps_what_is_gone",),
    ),
)


def outcomes(rows: Sequence[Proved], rounds: int) -> list[Outcome]:
    """Runs the tests of all rows once; those that kill do so twice a round, tokens expire ten times in each.

    RuntimeError when a place names no test.
    """
    places = sorted({place for row in rows for place in (*row.tests, *row.twins)})
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "--timeout=1800", f"--junitxml={report}"]
            + [f"tests/{place}" for place in places],
            cwd=ROOT,
            env={
                **os.environ,
                "SEALCOMB_TEST_KILLS": str(2 * rounds),
                "SEALCOMB_TEST_EXPIRIES": str(10 * rounds),
            },
            stdout=subprocess.DEVNULL,
            check=False,
        )
        # Written by pytest itself a moment ago.
        cases = [
            (f"{case.get('classname', '').replace('.', '/')}.py::{case.get('name', '')}", _failure(case))
            for case in ElementTree.parse(report).iter("testcase")
        ]
    return [_outcome(row, cases) for row in rows]


def _failure(case: ElementTree.Element) -> str:
    """How a test failed, or why it did not run; empty for one that passed."""
    said = "".join(part.text or part.get("message") or "" for part in case)
    return "\n".join(said.splitlines()[-_FAILURE_LINES:]) or ("no words" if len(case) else "")


def _outcome(row: Proved, cases: list[tuple[str, str]]) -> Outcome:
    twins = [not failure for name, failure in cases if _is_of(name, row.twins)]
    tests = [
        not failure for name, failure in cases if _is_of(name, row.tests) and not _is_of(name, row.twins)
    ]
    failures = [
        f"{name}\n{failure}" for name, failure in cases if failure and _is_of(name, (*row.tests, *row.twins))
    ]
    missing = [
        place for place in (*row.tests, *row.twins) if not any(_is_of(name, (place,)) for name, _ in cases)
    ]
    if missing:
        raise RuntimeError(f"{row.row}: no such test: {', '.join(missing)}")
    return Outcome(len(tests), sum(tests), len(twins), sum(twins), tuple(failures))


def _is_of(name: str, places: Sequence[str]) -> bool:
    """Whether a test stands at one of the places; its parameters do not matter."""
    plain = name.partition("[")[0]
    return any(plain in (f"tests/{place}", f"tests/{place}::{plain.rpartition('::')[2]}") for place in places)
