#include "sources/files/name_resolver.h"

#include <gtest/gtest.h>

#include <future>
#include <memory>
#include <string>

namespace fairway::sources {
namespace {

TEST(NameResolver, FindsLocalhostAndReportsWhatHasNoAddress) {
  std::promise<std::string> warned;
  const base::Log log(base::LogLevel::kWarn, base::LogFormat::kText,
                      [&](std::string_view line) { warned.set_value(std::string(line)); });
  std::promise<NameResolver::Addresses> found;
  net::LoopThread thread("resolver");
  std::unique_ptr<NameResolver> resolver;
  thread.loop().Post([&] {
    resolver = std::make_unique<NameResolver>(
        thread.loop(), log, [&](const NameResolver::Addresses& addresses) { found.set_value(addresses); });
    resolver->Watch({"localhost", "no-such-host.invalid"});
  });
  const auto addresses = found.get_future().get();
  ASSERT_EQ(addresses.size(), 1u);
  EXPECT_TRUE(addresses.at("localhost") == "127.0.0.1" || addresses.at("localhost") == "::1");
  EXPECT_NE(warned.get_future().get().find("no-such-host.invalid"), std::string::npos);
  std::promise<size_t> left;
  thread.loop().Post([&] {
    resolver->Watch({});
    const size_t count = resolver->addresses().size();
    resolver.reset();  // before the test may end
    left.set_value(count);
  });
  EXPECT_EQ(left.get_future().get(), 0u);
}

}  // namespace
}  // namespace fairway::sources
