#include "picker/fleet_page.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/pools.h"

namespace fairway::picker {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

TEST(FleetPage, ShowsTheAttributesOfThePoolsConfig) {
  tests::TestPool pool({{.name = "a", .waiting = 1}, {.name = "b", .waiting = 3}});
  const auto endpoints = pool.pool()->endpoints;
  endpoints[0].cell->SetAttribute(fleet::PageAttributes::KeyOf("Heat"), 71.5f);
  const auto text = [&](std::vector<std::string> attributes) {
    const auto next =
        FleetPage(pool.fleet().published().Load(), 2 * base::kSecond, [&](const std::string& key) {
          EXPECT_EQ(key, "default/pool");
          return attributes;
        });
    std::string all;
    for (std::string piece = next(); !piece.empty(); piece = next()) all += piece;
    return all;
  };
  const std::string page = text({"Heat", "Frost"});
  EXPECT_THAT(page, HasSubstr(R"("adapters":[],"attributes":{"Heat":71.5,"Frost":null}},{"name":"b")"));
  EXPECT_THAT(page, HasSubstr(R"("attributes":{"Heat":null,"Frost":null}}]}]})"));
  EXPECT_THAT(text({}), Not(HasSubstr("attributes")));
}

}  // namespace
}  // namespace fairway::picker
