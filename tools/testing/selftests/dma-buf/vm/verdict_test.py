#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Test verdict.py on the golden runs, and that each of its rules is needed.

verdict_test.txt has what runs left, cut down to what matters; what one lacks is taken
from the first, "pass". Each says what has to come out of it:

    === NAME
    # what it is, and where the text is from
    args ARGUMENT...        further arguments of verdict.py
    exit CODE
    has REGEX               matches a whole line of the output
    no REGEX                matches no part of the output
    file NAME REGEX         matches a part of that file of the run, afterwards
    nofile NAME             is not written
    without NAME            this file is not taken from "pass" either
    ==> FILE                the lines of a file follow

The files expect and expect2, where there are any, are passed to verdict.py. A few
runs with bytes that no text file should have are made here.

With --mutate, verdict.py and its lists are run with one rule less or changed, for
each rule, and a golden run must notice: conditions are made true and false, operands
of "and" and "or", alternatives and statements are dropped. A rule that none notices
is either not tested or not needed.
"""

import ast
import contextlib
import io
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as xml

HERE = pathlib.Path(__file__).resolve().parent
LISTS = ('splats.deny', 'splats.allow')
GROUP = re.compile(r'\((?:\?:)?((?:[^()|\\]|\\.)*(?:\|(?:[^()|\\]|\\.)*)+)\)')

MADE = {
    'odd-bytes': {
        'ktap': b'KTAP version 1\n1..2\nok 1 a:\x1b[31mred\x00\x07\nnot ok 2 a:\xff\xfe\xed\xa0\x80 & <"b\'\n',
        'verdict': b'exit 1\nhas # FAILED: a:.* & <"b\'\nno \\x1b\nfile junit.xml name="a:\\?\\[31mred\\?\\?"\n'},
    'noncharacters': {
        'ktap': 'KTAP version 1\n1..1\nnot ok 1 a:\ufffe\uffff\x85\x9b\u2028b\n'.encode(),
        'verdict': 'exit 1\nhas # FAILED: a:\\?\\?\\?\\?\u2028b\n'.encode()},
    'line-ends': {
        'ktap': b'KTAP version 1\r\n1..2\r\nok 1 a:b\r\nok 2 a:c\rnot ok 3 d\x0b\x0cok 4\r\n',
        'expect': b'ok a:b\nok a:c\rnot ok 3 d\x0b\x0cok 4\n',
        'verdict': b'exit 0\nhas 2 passed, 0 failed, 0 skipped\nno MISSING\n'},
    'cut-line': {
        'ktap': b'KTAP version 1\n1..2\nok 1 a:b\nok 2 a:c # SK',
        'verdict': b'exit 3\nhas # the KTAP is not complete\n'},
    'empty-ktap': {
        'ktap': b'',
        'verdict': b'exit 3\nhas # the KTAP is not complete\n'},
    'no-junit': {
        'junit.xml': None,
        'verdict': b'exit 2\nhas # junit.xml: .*Is a directory.*\n'},
    'fault-in-verdict': {
        'ktap': None,
        'verdict': b'exit 2\nhas IsADirectoryError: .*\nfile junit.xml IsADirectoryError\n'},
    'long-line': {
        'ktap': b'KTAP version 1\n1..2\n# %s\nok 1 a:%s%s\nok 2 a:b\n' % (b'x' * 1000000, b' ' * 500, b'y' * 100000),
        'serial': b'Linux version 7\n' + b'BUG INFO: task WARNING ' * 40 + b'\nreboot: Power down\n',
        'verdict': b'exit 0\nhas 2 passed, 0 failed, 0 skipped\n'},
}


class Golden:
    def __init__(self, folder):
        self.name = folder.name
        self.folder = folder
        self.files = set(os.listdir(folder))
        self.args, self.exit, self.checks = [], None, []
        for line in (folder / 'verdict').read_text(encoding='utf-8').split('\n'):
            word, _, rest = line.partition(' ')
            if word == 'args':
                self.args = [arg.replace('RUN', str(folder)) for arg in shlex.split(rest)]
            elif word == 'exit':
                self.exit = int(rest)
            elif word in ('has', 'no', 'file', 'nofile'):
                self.checks.append((word, rest))
            elif line and word not in ('#', 'without'):
                raise SystemExit(f'{self.name}/verdict: {line}')
        self.args += [str(folder / f) for f in ('expect', 'expect2') if f in self.files]

    def command(self, splats):
        return ['verdict.py', '--run', str(self.folder), '--splats', str(splats), *self.args]

    def reset(self):
        """What verdict.py wrote the last time must not count"""
        for entry in set(os.listdir(self.folder)) - self.files:
            (self.folder / entry).unlink()

    def wrong(self, code, out):
        """Says what is not as it should be, nothing if all is well."""
        if code != self.exit:
            return f'exit code {code}, not {self.exit}'
        counts = re.search(r'(?:\A|\n)(\d+) passed, (\d+) failed, (\d+) skipped\n\Z', out)
        if not counts:
            return 'the last line does not have the counts'
        for word, rest in self.checks:
            if word == 'has' and not re.search(f'^(?:{rest})$', out, re.MULTILINE):
                return f'no line {rest}'
            if word == 'no' and re.search(rest, out):
                return f'there is {rest}'
            if word == 'nofile' and (self.folder / rest).exists():
                return f'{rest} was written'
            if word == 'file':
                name, _, regex = rest.partition(' ')
                path = self.folder / name
                if not path.is_file() or not re.search(regex, path.read_text(encoding='utf-8')):
                    return f'{name} does not have {regex}'
        if (self.folder / 'junit.xml').is_dir():
            return ''
        try:
            suite = xml.parse(self.folder / 'junit.xml').getroot()
        except (OSError, xml.ParseError) as error:
            return f'junit.xml: {error}'
        passed, failed, skipped = (int(n) for n in counts.groups())
        errors = 1 if self.exit > 1 else 0
        tests = passed + failed + skipped + errors
        for tag, attribute, number in (('testcase', 'tests', tests), ('error', 'errors', errors),
                                       ('failure', 'failures', failed), ('skipped', 'skipped', skipped)):
            if len(list(suite.iter(tag))) != number or suite.get(attribute) != str(number):
                return f'junit.xml has not {number} {tag}'
        return ''


def stored():
    """{run: {file: content}} of verdict_test.txt"""
    runs = {}
    text = (HERE / 'verdict_test.txt').read_text(encoding='utf-8')
    for part in re.split('^=== ', text, flags=re.MULTILINE)[1:]:
        name, _, rest = part.partition('\n')
        verdict, *files = re.split('^==> (.*)\n', rest, flags=re.MULTILINE)
        runs[name] = {file: content.encode() for file, content in zip(files[::2], files[1::2])}
        runs[name]['verdict'] = verdict.encode()
    return runs


def golden_runs(tmp):
    """The golden runs, each with all files, in folders that may be written to"""
    folders = {}
    for name, files in {**stored(), **MADE}.items():
        folders[name] = tmp / 'made' / name
        folders[name].mkdir(parents=True)
        for file, content in files.items():
            if content is None:
                (folders[name] / file).mkdir()
            else:
                (folders[name] / file).write_bytes(content)
    for name, folder in folders.items():
        run = tmp / 'run' / name
        shutil.copytree(folders['pass'], run, ignore=shutil.ignore_patterns('verdict', 'expect'))
        for file in folder.iterdir():
            if file.is_dir():
                shutil.rmtree(run / file.name, ignore_errors=True)
                (run / file.name).unlink(missing_ok=True)
                (run / file.name).mkdir()
            else:
                shutil.copy(file, run)
        for gone in re.findall('^without (.*)$', (run / 'verdict').read_text(encoding='utf-8'), re.MULTILINE):
            (run / gone).unlink()
    return [Golden(tmp / 'run' / name) for name in folders]


class Verdict:
    """verdict.py in this process"""

    def __init__(self, code):
        self.names = {'__name__': 'verdict'}
        exec(code, self.names)

    def run(self, golden, splats):
        out = io.StringIO()
        sys.argv = golden.command(splats)
        golden.reset()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            try:
                code = self.names['main']()
            except (Exception, SystemExit) as error:
                code = repr(error)
        return golden.wrong(code, out.getvalue()), out.getvalue()


def alternatives(text):
    """text without one alternative of a group, for each"""
    for group in GROUP.finditer(text):
        words = re.split(r'(?<!\\)\|', group[1])
        for word in words:
            rest = '|'.join(w for w in words if w is not word)
            yield word, text[:group.start(1)] + rest + text[group.end(1):]


def changes(node):
    """(what, node or list, field or index, replacement): each is one change of the program"""
    if isinstance(node, (ast.If, ast.IfExp)):
        for value in False, True:
            yield f'"{ast.unparse(node.test)}" is {value}', node, 'test', ast.Constant(value)
    if isinstance(node, ast.comprehension):
        for i, test in enumerate(node.ifs):
            for value in False, True:
                yield f'"{ast.unparse(test)}" is {value}', node.ifs, i, ast.Constant(value)
    if isinstance(node, ast.BoolOp):
        for i, value in enumerate(node.values):
            rest = node.values[:i] + node.values[i + 1:]
            # the tree must have two operands
            yield f'no "{ast.unparse(value)}" in "{ast.unparse(node)}"', node, 'values', rest + rest[-1:]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        yield f'no "{ast.unparse(node.left)}" in "{ast.unparse(node)}"', node, 'left', node.right
        yield f'no "{ast.unparse(node.right)}" in "{ast.unparse(node)}"', node, 'right', node.left
    if isinstance(node, ast.Tuple) and len(node.elts) > 1 and all(
            isinstance(e, ast.Constant) and isinstance(e.value, str) for e in node.elts):
        for i, value in enumerate(node.elts):
            yield f'no {ast.unparse(value)} in {ast.unparse(node)}', node, 'elts', node.elts[:i] + node.elts[i + 1:]
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        for word, rest in alternatives(node.value):
            yield f'no "{word}" in "{node.value}"', node, 'value', rest
    if isinstance(node, ast.ExceptHandler):
        yield f'no except {ast.unparse(node.type)}', node, 'type', ast.Tuple([], ast.Load())
    for field in 'body', 'orelse':
        statements = getattr(node, field, None)
        for i, inner in enumerate(statements if isinstance(statements, list) else []):
            docstring = isinstance(inner, ast.Expr) and isinstance(inner.value, ast.Constant)
            if isinstance(inner, (ast.Raise, ast.AugAssign, ast.Expr)) and not docstring:
                yield f'no {ast.unparse(inner)}', statements, i, ast.Pass()


def programs(source):
    """(label, code) of verdict.py with one change, for each change"""
    tree = ast.parse(source)
    parts = [(part, part.name) for part in tree.body if hasattr(part, 'name')]
    parts += [(part, 'module') for part in tree.body if isinstance(part, ast.Assign)]
    for part, name in parts:
        for node in list(ast.walk(part)):
            for what, holder, key, new in list(changes(node)):
                get, put = (holder.__getitem__, holder.__setitem__) if isinstance(holder, list) else \
                           (holder.__dict__.__getitem__, holder.__dict__.__setitem__)
                old = get(key)
                if isinstance(new, ast.AST) and not hasattr(new, 'lineno'):
                    ast.copy_location(new, part)
                put(key, new)
                yield f'verdict.py, {name}: {what}', compile(tree, 'verdict.py', 'exec')
                put(key, old)


def lists():
    """(label, name, text) of the lists with one pattern or alternative less"""
    for name in LISTS:
        lines = (HERE / name).read_text().splitlines()
        for i, line in enumerate(lines):
            if line and not line.startswith('#'):
                yield f'{name}: no "{line}"', name, lines[:i] + lines[i + 1:]
                for word, rest in alternatives(line):
                    yield f'{name}: no "{word}" in "{line}"', name, lines[:i] + [rest] + lines[i + 1:]


class Results:
    def __init__(self):
        self.number = self.failed = 0

    def add(self, wrong, text, details=''):
        self.number += 1
        print(f'ok {self.number} - {text}' if not wrong else f'not ok {self.number} - {text}: {wrong}')
        if wrong:
            self.failed += 1
            print(''.join(f'#   {line}\n' for line in details.splitlines()[-15:]), end='')


def test(tmp, mutate):
    results = Results()
    goldens = golden_runs(tmp)
    source = (HERE / 'verdict.py').read_text()
    splats = HERE / 'splats'
    verdict = Verdict(compile(source, 'verdict.py', 'exec'))
    for golden in goldens:
        wrong, out = verdict.run(golden, splats)
        results.add(wrong, f'golden run {golden.name}', out)

    # the real command, on a terminal that cannot show everything
    for name in 'pass', 'odd-bytes', 'kasan':
        golden = next(g for g in goldens if g.name == name)
        golden.reset()
        run = subprocess.run([sys.executable, '-B', HERE / 'verdict.py', *golden.command(splats)[1:]],
                             capture_output=True, text=True, env={**os.environ, 'PYTHONIOENCODING': 'ascii:strict'})
        results.add(golden.wrong(run.returncode, run.stdout), f'command on golden run {name}', run.stdout + run.stderr)

    # A golden run that is red by itself notices nothing.
    if mutate and not results.failed:
        def noticed(verdict, splats):
            for i, golden in enumerate(goldens):
                if verdict.run(golden, splats)[0]:
                    # likely to notice the next one, which is near, too
                    goldens.insert(0, goldens.pop(i))
                    return True
            return False

        for label, name, lines in lists():
            for other in LISTS:
                shutil.copy(HERE / other, tmp)
            (tmp / name).write_text('\n'.join(lines) + '\n')
            results.add('' if noticed(verdict, tmp / 'splats') else 'no golden run notices', label)
        for label, code in programs(source):
            results.add('' if noticed(Verdict(code), splats) else 'no golden run notices', label)
    print(f'{results.number - results.failed} passed, {results.failed} failed, 0 skipped')
    return results.failed != 0


if __name__ == '__main__':
    with tempfile.TemporaryDirectory() as folder:
        sys.exit(test(pathlib.Path(folder), sys.argv[1:] == ['--mutate']))
