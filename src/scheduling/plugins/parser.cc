// The parsers: who reads which bodies. What they read is payload's; here they only say that they are on. Source: the
// reference's parser registry, whose factories look at no parameters.
#include "base/result.h"
#include "scheduling/plugin.h"

namespace fairway::scheduling {
namespace {

class ListedParser final : public Plugin, public BodyParser {
 public:
  explicit ListedParser(payload::Parser parser) : parser_(parser) {}
  payload::Parser parser() const noexcept override { return parser_; }

 private:
  payload::Parser parser_;
};

}  // namespace

std::unique_ptr<Plugin> MakeParser(Build& build) {
  const auto parser = payload::FindParser(build.type());
  FAIRWAY_CHECK(parser.has_value());
  return std::make_unique<ListedParser>(*parser);
}

}  // namespace fairway::scheduling
