// single-profile-handler: the only profile decides. No parameters. Source: the reference's handler of this
// name (llm-d router).
#include "scheduling/plugin.h"

namespace fairway::scheduling {
namespace {

class SingleProfileHandler final : public Plugin, public ProfileHandler {
 public:
  std::optional<size_t> Next(const Context&, std::span<const ProfileResult> results) const noexcept override {
    if (results[0].ran) return std::nullopt;
    return 0;
  }
  size_t Primary(std::span<const ProfileResult>) const noexcept override { return 0; }
};

}  // namespace

std::unique_ptr<Plugin> MakeSingleProfileHandler(Build&) { return std::make_unique<SingleProfileHandler>(); }

}  // namespace fairway::scheduling
