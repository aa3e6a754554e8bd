#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Judge a run of vmtest.sh by what it left in its folder.

The folder has ktap (the results), record (what PID 1 says), serial (the log of
the kernel) and status (of QEMU, 124 if its time was up). A run passes only if
the guest wrote its exit record, the KTAP is whole, every test of the record of
the base was seen, every failure and skip is one that the expectations list,
the kernel log is clean, nothing leaked and the kernel is not tainted.
"""

import argparse
import collections
import pathlib
import re
import sys

PASS, FAILED, INFRA, SPLAT, NOTHING = range(5)

# TAINT_TEST: set by in-kernel test code (iommufd's mock, KUnit).
# TAINT_SOFTLOCKUP: set by opening sw_sync; a real soft lockup stands in the log.
TAINT_ALLOWED = 1 << 18 | 1 << 14


def say(text):
    print(f'# {text}')


def read(path):
    return path.read_text(errors='replace').splitlines() if path.exists() else []


def patterns(path):
    lines = (line.strip() for line in read(path))
    return [re.compile(line) for line in lines if line and not line.startswith('#')]


def read_expectations(paths):
    """Lines "ok|skip|fail NAME [# reason]"; a later file overrides an earlier one."""
    expected = {}
    for path in paths:
        for nr, line in enumerate(read(pathlib.Path(path)), 1):
            line = re.sub(r'(^|\s+)#.*', '', line).strip()
            if not line:
                continue
            result, _, name = line.partition(' ')
            if result not in ('ok', 'skip', 'fail') or not name:
                sys.exit(f'{path}:{nr}: not "ok|skip|fail NAME [# reason]": {line}')
            expected[name.strip()] = result
    return expected


def leaves(test, path, xfail):
    """The results of a parsed test and those below it, as (name, result)."""
    result = {'SUCCESS': 'ok', 'SKIPPED': 'skip'}.get(test.status.name, 'fail')
    if not test.subtests:
        if result == 'ok' and test.name.strip() in xfail:
            result = 'skip'
        return [(path, result)]
    below = []
    for sub in test.subtests:
        below += leaves(sub, f'{path}/{sub.name.strip()}', xfail)
    # A program can fail with all of its tests good: a signal, a broken plan
    if result == 'fail' and all(r != 'fail' for _, r in below):
        below.append((path, 'fail'))
    return below


def parse_ktap(lines, kunit):
    """Returns the results in order, and whether the outermost plan is complete."""
    sys.path.insert(0, kunit)
    from kunit_parser import parse_run_tests
    from kunit_printer import Printer

    plan = next((int(m[1]) for m in (re.match(r'1\.\.(\d+)', l) for l in lines) if m), None)
    done = sum(1 for line in lines if re.match(r'(not )?ok \d+', line))
    if plan is None:
        return [], False
    xfail = {m[1].strip() for m in (re.match(r'\s*ok \d+ -? ?(.*)# XFAIL', l) for l in lines) if m}
    results = []
    seen = collections.Counter()
    for test in parse_run_tests(lines, Printer(print=False)).subtests:
        for name, result in leaves(test, test.name.strip(), xfail):
            seen[name] += 1
            if seen[name] > 1:
                name = f'{name}#{seen[name]}'
            results.append((name, result))
    return results, plan == done


def judge_results(results, expected):
    """Counts, and prints what is not as expected."""
    counts = collections.Counter()
    programs = {program(name) for name, _ in results}
    names = {name for name, _ in results}
    for name, result in results:
        want = expected.get(name)
        if result == 'ok':
            counts['passed'] += 1
            if want in ('skip', 'fail'):
                say(f'better than expected ({want}): {name}')
        elif result == want:
            counts['skipped'] += 1
            if want == 'fail':
                say(f'known failure, not counted as passed: {name}')
        else:
            counts['failed'] += 1
            say(f'FAILED: {name}' if result == 'fail' else f'SKIPPED, and not listed as a skip: {name}')
    for name in expected:
        if name not in names and program(name) in programs:
            counts['failed'] += 1
            say(f'MISSING: {name} is expected and was not seen')
    return counts


def program(name):
    """COLLECTION:PROG[ ARGS] of a test's name; collections have slashes too."""
    collection, _, rest = name.partition(':')
    return collection + ':' + rest.split('/')[0]


def scan_log(lines, splats):
    deny = patterns(pathlib.Path(splats + '.deny'))
    allow = patterns(pathlib.Path(splats + '.allow'))
    if not deny:
        sys.exit(f'{splats}.deny has no patterns')
    bad = [(nr, line) for nr, line in enumerate(lines, 1)
           if any(p.search(line) for p in deny) and not any(p.search(line) for p in allow)]
    for nr, line in bad[:20]:
        say(f'kernel log, line {nr}: {line}')
    return bool(bad)


def judge_record(record, serial, status, ktap):
    """What the guest said of itself. Returns an exit code, PASS if all is well."""
    words = dict(line.partition(' ')[::2] for line in record)
    if 'up' not in words:
        if not any('Linux version' in line for line in serial):
            say('QEMU did not start the guest')
            return INFRA
        say('the guest did not come up')
        return SPLAT
    if 'setup' in words:
        say('the set-up of the guest failed')
        return INFRA
    if 'end' not in words:
        last = [line for line in ktap if re.match(r'# \S+:.*, timeout', line)]
        say('the guest wrote no exit record' + (', its time was up' if status == '124' else '') +
            (f'; the last test was {last[-1][2:]}' if last else ''))
        return SPLAT
    bad = False
    if status != '0':
        say(f'QEMU ended with status {status}')
        bad = True
    if words.get('leaks') != '0':
        say(f'kmemleak: {words.get("leaks", "no answer")} leaks')
        bad = True
    if words.get('dma_errors') != '0':
        say(f'DMA-API: {words.get("dma_errors", "no answer")} errors')
        bad = True
    tainted = int(words.get('tainted', '-1'))
    if tainted & ~TAINT_ALLOWED:
        say(f'the kernel is tainted: {tainted}')
        bad = True
    return SPLAT if bad else PASS


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--run', type=pathlib.Path, required=True)
    parser.add_argument('--kunit', required=True)
    parser.add_argument('--splats', required=True)
    parser.add_argument('--prog')
    parser.add_argument('--record', type=pathlib.Path)
    parser.add_argument('expect', nargs='*')
    args = parser.parse_args()

    ktap, record, serial, status = (read(args.run / f) for f in ('ktap', 'record', 'serial', 'status'))
    code = judge_record(record, serial, status[0] if status else 'unknown', ktap)
    if scan_log(serial, args.splats):
        code = SPLAT

    results, whole = parse_ktap(ktap, args.kunit)
    if args.prog:
        said = next((line.split()[1] for line in record if line.startswith('prog ')), None)
        say(f'{args.prog}: ' + {None: 'did not end', 'timeout': 'timeout'}.get(said, f'exit status {said}'))
        if not results:
            results = [(args.prog, 'ok' if said == '0' else 'fail')]
        elif said != '0' and all(result != 'fail' for _, result in results):
            results.append((args.prog, 'fail'))
        whole = whole or len(results) == 1
    if not whole:
        say('the KTAP is not complete')
        code = code or SPLAT
    if args.record:
        args.record.write_text('# Recorded by vmtest.sh -r\n' +
                               ''.join(f'{result} {name}\n' for name, result in results))

    counts = judge_results(results, read_expectations(args.expect))
    if counts['failed']:
        code = code or FAILED
    elif not counts['passed']:
        say('nothing was tested')
        code = code or NOTHING
    say(f'verdict: {("pass", "a test failed", "infrastructure", "kernel splat, crash or leak", "not run")[code]}'
        f' (exit code {code}); everything is in {args.run}')
    print(f'{counts["passed"]} passed, {counts["failed"]} failed, {counts["skipped"]} skipped')
    return code


if __name__ == '__main__':
    sys.exit(main())
