// The picture of `fairway replay --plot`: that what is in it is in the right place.
#include "replay/plot.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <regex>

namespace fairway::replay {
namespace {

using testing::HasSubstr;
using testing::Not;

Row Made(std::string policy, double scale, std::string traffic = "") {
  Row row{.policy = std::move(policy), .traffic = std::move(traffic)};
  row.first_token = {.mean = 0.3 * scale, .p50 = 0.2 * scale, .p90 = 0.5 * scale, .p99 = 0.9 * scale};
  row.per_token = {.mean = 0.02, .p50 = 0.02, .p90 = 0.03, .p99 = 0.05};
  row.total = {.mean = 2 * scale, .p50 = 1 * scale, .p90 = 3 * scale, .p99 = 6 * scale};
  return row;
}

// Every number of an attribute, in the order of the picture.
std::vector<double> Numbers(const std::string& svg, const std::string& element,
                            const std::string& attribute) {
  std::vector<double> out;
  const std::regex pattern("<" + element + "[^>]*\\b" + attribute + "=\"([-0-9.a-z]+)\"");
  for (auto it = std::sregex_iterator(svg.begin(), svg.end(), pattern); it != std::sregex_iterator(); ++it)
    out.push_back(std::stod((*it)[1]));
  return out;
}

TEST(Plot, HasThreeBarsOfGrowingLengthForEachRowAndPanel) {
  const std::string svg = Plot("title", {Made("a", 1), Made("b", 10)});
  std::vector<double> widths = Numbers(svg, "rect x", "width");
  ASSERT_EQ(widths.size(), 2u * 3 * 3);
  for (size_t i = 0; i < widths.size(); i += 3) {
    EXPECT_GT(widths[i], widths[i + 1]);  // the longest lies below
    EXPECT_GT(widths[i + 1], widths[i + 2]);
    EXPECT_GT(widths[i + 2], 0);
  }
  // One axis for all rows of a panel: ten times as long is further right; the same is at the same place.
  EXPECT_GT(widths[3], widths[0]);
  EXPECT_DOUBLE_EQ(widths[6], widths[9]);
}

TEST(Plot, StaysWithinItsFrame) {
  std::vector<Row> rows;
  for (int i = 0; i < 12; ++i) rows.push_back(Made("policy " + std::to_string(i), i + 0.001));
  const std::string svg = Plot("title", rows);
  const double width = Numbers(svg, "svg", "width")[0], height = Numbers(svg, "svg", "height")[0];
  const auto x = Numbers(svg, "rect x", "width"), y = Numbers(svg, "text", "y"),
             at = Numbers(svg, "text", "x");
  for (const double value : x) EXPECT_LE(value, width);
  for (const double value : y) EXPECT_LE(value, height);
  for (const double value : at) EXPECT_LE(value, width);
  EXPECT_THAT(svg, Not(HasSubstr("nan")));
  EXPECT_THAT(svg, Not(HasSubstr("inf")));
}

TEST(Plot, NamesAreTextWhateverTheySay) {
  const std::string svg = Plot("a < b & \"c\"", {Made("<script>", 1), Made("x", 1, "of & all")});
  EXPECT_THAT(svg, Not(HasSubstr("<script>")));
  EXPECT_THAT(svg, HasSubstr("&#60;script&#62;"));
  EXPECT_THAT(svg, HasSubstr(">of &#38; all<"));
  EXPECT_THAT(svg, HasSubstr("a &#60; b &#38; &#34;c&#34;"));
}

TEST(Plot, WhereNothingWasAnsweredThereIsNoBar) {
  for (const auto& rows : {std::vector<Row>{}, std::vector<Row>{Row{.policy = "all failed"}}}) {
    const std::string svg = Plot("title", rows);
    EXPECT_EQ(Numbers(svg, "rect x", "width").size(), 0u);
    EXPECT_TRUE(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
    EXPECT_THAT(svg, Not(HasSubstr("nan")));
    EXPECT_THAT(svg, Not(HasSubstr("inf")));
  }
}

}  // namespace
}  // namespace fairway::replay
