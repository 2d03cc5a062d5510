"""That structure.py sees what it is there to see."""
import pathlib
import tempfile
import unittest

import structure


class Includes(unittest.TestCase):
    def problems(self, **files):
        files = {name.replace("__", "/").replace("_DOT_", "."): text for name, text in files.items()}
        return structure.check_includes(files)

    def only(self, problems, text):
        self.assertEqual(len(problems), 1, problems)
        self.assertIn(text, problems[0])

    def test_right_arrows_pass(self):
        self.assertEqual(self.problems(
            base__a_DOT_h="#include <string>\n", api__b_DOT_cc='#include "base/a.h"\n#include <yaml-cpp/yaml.h>\n'), [])

    def test_a_wrong_arrow_is_told_with_its_line(self):
        self.only(self.problems(base__a_DOT_h='// x\n#include "api/b.h"\n', api__b_DOT_h=""),
                  "src/base/a.h:2: base/ may not use api/")

    def test_core_may_not_use_net(self):
        self.only(self.problems(routing__r_DOT_cc='#include "net/loop.h"', net__loop_DOT_h=""),
                  "routing/ may not use net/")

    def test_sources_and_frontends_do_not_know_each_other(self):
        self.only(self.problems(sources__s_DOT_cc='#  include "frontends/f.h"', frontends__f_DOT_h=""), "may not use")

    def test_tests_beside_sources_obey_but_see_test_support(self):
        self.assertEqual(self.problems(net__n_test_DOT_cc='#include "tests/support/raw.h"\n#include <thread>'), [])
        self.assertEqual(self.problems(net__n_test_DOT_cc='#include "ext_proc.pb.h"'), [])
        self.only(self.problems(net__n_DOT_cc='#include "tests/support/raw.h"'), "is in no room")
        self.only(self.problems(net__n_test_DOT_cc='#include "api/b.h"', api__b_DOT_h=""), "may not use api/")

    def test_no_threads_sockets_or_protocols_in_the_core(self):
        for header in ("thread", "sys/socket.h", "boost/asio/io_context.hpp", "google/protobuf/message.h", "nghttp2/nghttp2.h"):
            self.only(self.problems(fleet__f_DOT_cc=f"#include <{header}>\n"), "in the core")
        self.assertEqual(self.problems(fleet__f_DOT_cc="#include <atomic>\n#include <mutex>\n"), [])

    def test_a_heavy_header_stays_in_its_room(self):
        private = dict(net__p_DOT_h="#include <boost/asio.hpp>\n", net__p_DOT_cc='#include "net/p.h"\n')
        self.assertEqual(self.problems(**private), [])
        self.only(self.problems(**private, net__q_DOT_h='#include "net/p.h"\n', cli__c_DOT_cc='#include "net/q.h"\n'),
                  "reaches src/cli/c.cc")

    def test_includes_are_rooted_at_src_and_exist(self):
        self.only(self.problems(net__n_DOT_cc='#include "loop.h"'), "include from src/")
        self.only(self.problems(net__n_DOT_cc='#include "net/gone.h"'), "there is no src/net/gone.h")
        self.only(self.problems(nett__n_DOT_cc=""), "no room 'nett'")


class Functions(unittest.TestCase):
    def lines(self, head, count, indent=""):
        return "\n".join([f"{indent}{head} {{", *[f"{indent}  a;"] * (count - 2), f"{indent}}}"]) + "\n"

    def test_a_function_has_an_end_in_sight(self):
        long, short = structure.FUNCTION_LINES + 1, structure.FUNCTION_LINES
        for head in ("int Up(const Flags& f)", "void Stream::Decide() noexcept", "[[gnu::hot]] auto F(int a) -> int", "    : a_(b), c_(d)"):
            self.assertEqual(structure.check_functions({"cli/a.cc": self.lines(head, short)}), [])
            self.assertEqual(structure.check_functions({"cli/a.cc": "\n" + self.lines(head, long)}),
                             [f"src/cli/a.cc:2: a function of {long} lines, at most {short}"])
        member = "class A {\n" + self.lines("void F(int a) const override", long, "  ") + "};\n"
        self.assertEqual(len(structure.check_functions({"cli/a.h": member})), 1)

    def test_what_holds_functions_is_none(self):
        for head in ("namespace fairway", "struct Impl", "class Stream final : public Sink", "if (a)", "constexpr std::array kAll ="):
            self.assertEqual(structure.check_functions({"cli/a.cc": self.lines(head, 500)}), [], head)
        self.assertEqual(structure.check_functions({"cli/a_test.cc": self.lines("TEST(A, B)", 500)}), [])


class Using(unittest.TestCase):
    def test_a_using_declaration_is_used(self):
        used, unused = "using std::string;\nstring a;\n", "\nusing testing::Each;\nEachOf(a);\n"
        self.assertEqual(structure.check_using({"base/a.cc": used, "base/b.h": unused}), [])
        self.assertEqual(structure.check_using({"base/a.cc": unused}), ["src/base/a.cc:2: using Each, which this file does not use"])


class Tree(unittest.TestCase):
    def test_readmes_are_there_and_short(self):
        with tempfile.TemporaryDirectory() as folder:
            root = pathlib.Path(folder)
            for room in ("base", "net"):
                (root / "src" / room).mkdir(parents=True)
            (root / "src/net/README.md").write_text("x\n" * 41)
            self.assertEqual(structure.check_readmes(root),
                             ["src/base: no README.md", "src/net/README.md: 41 lines, at most 40"])

    def test_machine_paths(self):
        slash = "/"
        bad = {"a": f"see {slash}work/main/x", "b": f"ok\n'{slash}root/.cache'", "c": f"{slash}home/ann/src"}
        self.assertEqual(len(structure.check_machine_paths(bad)), 3)
        good = {"a": "route.route/prefix /workers/x $HOME/.cache ~/.cache/fairway /tmp/x https://x.org/root/y"}
        self.assertEqual(structure.check_machine_paths(good), [])

    def test_links(self):
        with tempfile.TemporaryDirectory() as folder:
            root = pathlib.Path(folder)
            (root / "a.md").write_text("")
            texts = {"b.md": "[a](a.md#part) [web](https://x.org/y)", "c.md": "[gone](d.md)", "e.cc": "[](gone)"}
            self.assertEqual(structure.check_links(root, texts), ["c.md: a link to d.md, which is not there"])

    def test_nothing_found_is_a_problem(self):
        with tempfile.TemporaryDirectory() as folder:
            self.assertIn("no sources found", structure.check(pathlib.Path(folder))[0])


if __name__ == "__main__":
    unittest.main()
