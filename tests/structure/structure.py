"""The house rules that a compiler does not check. Standard library only.

  python3 tests/structure/structure.py [ROOT]     prints what is wrong, exits 1 when anything is

Read from #include lines under src/:
- arrows: a room includes only rooms it may use (ARCHITECTURE.md); no cycle can hide, since the table has none;
- the core has no sockets, threads or protocols in it;
- a using-declaration in a .cc file is used there (tools/tidy looks at several files at a time and cannot tell);
- a function has at most FUNCTION_LINES lines, from its first to its last; tests are exempt;
- a heavy header (slow to compile) is included by .cc files, or by headers that no other room sees.
And from the tree: each room has a README of at most 40 lines; no file names a path of somebody's machine; links between documents lead somewhere.
"""
import collections
import pathlib
import re
import subprocess
import sys

CORE = ["base", "api", "payload", "prefix", "fleet", "scheduling", "flow_control", "routing"]
ROOMS = {
    "base": set(),
    "api": {"base"},
    "payload": {"base"},
    "prefix": {"base", "payload"},
    "fleet": {"base", "api"},
    "scheduling": {"base", "api", "payload", "fleet", "prefix"},
    "flow_control": {"base", "api", "fleet"},
    "routing": {"base", "api", "payload", "fleet", "scheduling", "flow_control"},
    "net": {"base"},
    "sources": {"base", "api", "fleet", "net"},
    "frontends": {"base", "api", "payload", "routing", "net"},
    "simulator": {"base", "api", "payload", "net"},
}
ROOMS["replay"] = {"base", "api", "payload", "fleet", "scheduling", "routing", "simulator"}
ROOMS["picker"] = {"base", "api", "fleet", "scheduling", "routing", "net", "sources", "frontends"}
ROOMS["module"] = ROOMS["picker"] | {"picker"}
ROOMS["cli"] = set(ROOMS) - {"module"}

# Seconds of compilation for each file that sees one of them, nghttp2 and OpenSSL excepted: those two are here so
# that C types do not become our interfaces.
HEAVY = re.compile(r"(boost/|yaml-cpp/|CLI/|google/protobuf/|grpcpp/|simdjson|openssl/|nghttp2/|.*\.pb\.h$)")
NOT_IN_CORE = re.compile(
    r"(boost/asio|boost/beast|google/protobuf/|grpc|.*\.pb\.h$|openssl/|nghttp2/|thread$|future$|stop_token$"
    r"|condition_variable$|sys/socket\.h|sys/epoll\.h|sys/un\.h|netdb\.h|pthread\.h|experimental/)")
USING = re.compile(r"^\s*using\s+[\w:]*::(\w+);", re.MULTILINE)
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', re.MULTILINE)
README_LINES = 40
FUNCTION_LINES = 75
# A line that ends with a function's brace, as clang-format lays it out: with its parameters, or with what a constructor begins with.
FUNCTION = re.compile(r"^( *)(: )?(?!(?:if|for|while|switch|else|do|try|catch|namespace|struct|class|enum|union|extern|return|case)\b)"
                      r"[^\s#/}].*[)\w}>*&] \{$")
# A README of its own for these too: they are large enough to get lost in.
ALSO_README = ["src/scheduling/plugins", "src/frontends/ext_proc", "src/frontends/local", "tests", "bench", "fuzz", "examples"]
MACHINE_PATH = re.compile(r"(?<![\w.$}>-])/(work|root|home/\w+|Users|tmp/b-\w+)/[\w.]")


def includes(text):
    """(line number, '<' or '"', path) of each #include line."""
    return [(text.count("\n", 0, m.start(2)) + 1, m.group(1), m.group(2)) for m in INCLUDE.finditer(text)]


def check_includes(files):
    """`files`: path below src/ -> text. Returns problems as text."""
    problems = []
    heavy_headers = {}  # path -> (line, what)
    users = collections.defaultdict(set)  # path -> files that include it
    for path, text in sorted(files.items()):
        room = path.split("/")[0]
        if room not in ROOMS:
            problems.append(f"src/{path}: no room '{room}'; rooms are {', '.join(ROOMS)}")
            continue
        beside = re.search(r"_(test|bench)\.cc$", path)
        for line, kind, target in includes(text):
            where = f"src/{path}:{line}"
            users[target].add(path)
            if HEAVY.match(target) and path.endswith(".h"):
                heavy_headers[path] = (line, target)
            if room in CORE and NOT_IN_CORE.match(target) and not beside:
                problems.append(f"{where}: <{target}> in {room}/: no socket, thread or protocol in the core")
            if kind != '"':
                continue
            other = target.split("/")[0]
            if beside and target.endswith(".pb.h"):
                continue  # generated for the test
            if "/" not in target or target.startswith("."):
                problems.append(f'{where}: "{target}": include from src/: "{room}/..."')
            elif other == "tests" and beside:
                continue
            elif other not in ROOMS:
                problems.append(f'{where}: "{target}" is in no room')
            elif other != room and other not in ROOMS[room]:
                problems.append(f'{where}: {room}/ may not use {other}/ ("{target}"); it may use: '
                                f"{', '.join(sorted(ROOMS[room])) or 'nothing'}")
            elif target not in files:
                problems.append(f'{where}: there is no src/{target}')
    # A heavy header may hide in a header that stays in its room, seen from all its users on.
    for path, (line, what) in sorted(heavy_headers.items()):
        room, seen, todo = path.split("/")[0], set(), [path]
        while todo:
            for user in users[todo.pop()]:
                if user in seen:
                    continue
                seen.add(user)
                if user.endswith(".h"):
                    todo.append(user)
                if user.split("/")[0] != room:
                    problems.append(f"src/{path}:{line}: heavy header <{what}> reaches src/{user} in another room")
    return problems


def check_using(files):
    """`files`: path below src/ -> text."""
    return [f"src/{path}:{text.count(chr(10), 0, found.start(1)) + 1}: using {found.group(1)}, which this file does not use"
            for path, text in sorted(files.items()) if path.endswith(".cc") for found in USING.finditer(text)
            if len(re.findall(rf"\b{found.group(1)}\b", text)) == 1]


def check_functions(files):
    """`files`: path below src/ -> text. The end is the first closing brace as deep as the line that began the function."""
    problems = []
    for path, text in sorted(files.items()):
        if re.search(r"_(test|bench)\.cc$", path):
            continue
        begin = depth = None
        for number, line in enumerate(text.splitlines(), 1):
            if begin is None and (found := FUNCTION.match(line)):
                depth = len(found.group(1)) - (4 if found.group(2) else 0)
                if depth in (0, 2):
                    begin = number
            elif begin is not None and line.startswith(" " * depth + "}"):
                if number - begin >= FUNCTION_LINES:
                    problems.append(f"src/{path}:{begin}: a function of {number - begin + 1} lines, at most {FUNCTION_LINES}")
                begin = None
    return problems


def check_readmes(root):
    problems = []
    rooms = [f"src/{room}" for room in ROOMS if (root / "src" / room).is_dir()]
    for folder in rooms + [f for f in ALSO_README if (root / f).is_dir()]:
        readme = root / folder / "README.md"
        if not readme.is_file():
            problems.append(f"{folder}: no README.md")
            continue
        lines = len(readme.read_text().splitlines())
        if lines > README_LINES:
            problems.append(f"{folder}/README.md: {lines} lines, at most {README_LINES}")
    return problems


def check_machine_paths(files):
    """`files`: path -> text."""
    return [f"{path}:{number}: a path of one machine: {found.group(0)}..."
            for path, text in sorted(files.items()) for number, line in enumerate(text.splitlines(), 1)
            if (found := MACHINE_PATH.search(line))]


def check_links(root, files):
    """Relative links of Markdown files lead somewhere. `files`: path -> text."""
    problems = []
    for path, text in sorted(files.items()):
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text) if path.endswith(".md") else []:
            if "://" not in target and not (root / path).parent.joinpath(target).exists():
                problems.append(f"{path}: a link to {target}, which is not there")
    return problems


def tracked_files(root):
    """Text files of the tree: what git knows, or all without git (a tarball)."""
    git = subprocess.run(["git", "-C", root, "ls-files", "-z"], capture_output=True, text=True, check=False)
    names = git.stdout.split("\0") if git.returncode == 0 else [
        str(p.relative_to(root)) for p in root.rglob("*") if not {"build", ".git"} & set(p.relative_to(root).parts)]
    files = {}
    for name in filter(None, names):
        path = root / name
        if name.startswith(("tests/structure/", "fuzz/corpus/")) or not path.is_file():
            continue
        try:
            files[name] = path.read_text()
        except UnicodeDecodeError:
            pass  # a corpus file, an image
    return files


def check(root):
    src = root / "src"
    sources = {str(p.relative_to(src)): p.read_text() for p in src.rglob("*") if p.suffix in (".h", ".cc")}
    if not sources:
        return [f"{src}: no sources found"]
    texts = tracked_files(root)
    return check_includes(sources) + check_using(sources) + check_functions(sources) + check_readmes(root) + check_machine_paths(texts) + check_links(root, texts)


if __name__ == "__main__":
    found = check(pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parents[2]).resolve())
    print("\n".join(found) or "structure: as it should be")
    sys.exit(bool(found))
