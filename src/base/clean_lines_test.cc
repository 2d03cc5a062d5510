#include "base/clean_lines.h"

#include <gtest/gtest.h>

#include <string>

namespace fairway::base {
namespace {

TEST(CleanLines, LinesAndTabsStayAndWhatATerminalObeysGoes) {
  EXPECT_EQ(CleanLines(""), "");
  EXPECT_EQ(CleanLines("a\tb\n\nc\n"), "a\tb\n\nc\n");
  EXPECT_EQ(CleanLines("na\xc3\xafve"), "na\xc3\xafve");
  EXPECT_EQ(CleanLines("a\x1b[31mb\r\n\xc2\x9b"
                       "2J\xff\x7f"),
            "a\xef\xbf\xbd[31mb\xef\xbf\xbd\n\xef\xbf\xbd"
            "2J\xef\xbf\xbd\xef\xbf\xbd");
  EXPECT_EQ(CleanLines(std::string(100'000, '\x1b')).size(), 300'000u) << "nothing is cut";
}

}  // namespace
}  // namespace fairway::base
