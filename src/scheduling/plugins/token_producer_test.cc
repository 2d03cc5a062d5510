// Where tokens are asked for, as configs say it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "scheduling/config.h"
#include "tests/support/plugins.h"

namespace fairway::scheduling {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

std::vector<std::string> ProblemsWithUrl(const std::string& url) {
  const std::string parameters = "{vllm: {url: \"" + url + "\"}}";
  return tests::ProblemsOf(tests::OneProfile({tests::Parsed("token-producer", "token-producer", parameters),
                                              tests::Spec("queue-scorer"), tests::Spec("max-score-picker")},
                                             {{"queue-scorer"}, {"max-score-picker"}}));
}

TEST(TokenProducer, AUrlIsOneThatCanBeAsked) {
  for (const std::string good : {"http://render", "http://render.ns.svc:8000/a/b", "http://[fd00::1]:8000",
                                 "http://10.0.0.1", "http://a_b"})
    EXPECT_THAT(ProblemsWithUrl(good), IsEmpty()) << good;
  for (const std::string& bad :
       {std::string("render:8000"), std::string("http://"), std::string("http://a:0"),
        std::string("http://a b"), std::string("http://a\\u001b[31m"), std::string("http://a\\u009b"),
        std::string("http://a/b\\u0007"), std::string("http://a/b?c"), "http://" + std::string(254, 'a'),
        "http://a/" + std::string(1024, 'b')})
    EXPECT_THAT(ProblemsWithUrl(bad), ElementsAre(HasSubstr("must be http://HOST"))) << bad.substr(0, 40);
}

}  // namespace
}  // namespace fairway::scheduling
