// header-profile-handler: the profile that a header names decides alone. Parameters: `headerName`
// (EPP-Profile), `defaultProfile` (decode) where a request has none. A name of no profile selects nothing,
// and the request gets 429. Source: the reference's handler of this name (llm-d router).
#include <string>
#include <vector>

#include "scheduling/plugin.h"

namespace fairway::scheduling {
namespace {

class HeaderProfileHandler final : public Plugin, public ProfileHandler {
 public:
  explicit HeaderProfileHandler(Build& build)
      : header_(build.WantsHeader(build.Text("headerName", "EPP-Profile", "Header that names the profile"))),
        default_(build.Text("defaultProfile", "decode", "Profile of requests without it")),
        profiles_(build.Profiles()) {
    if (!build.Profile(default_))
      build.Error("defaultProfile", "there is no profile " + api::Quote(default_));
  }

  std::optional<size_t> Next(const Context& context,
                             std::span<const ProfileResult> results) const noexcept override {
    for (const ProfileResult& result : results) {
      if (result.ran) return std::nullopt;
    }
    const std::string_view said = context.request.header(header_);
    const std::string_view name = said.empty() ? std::string_view(default_) : said;
    for (size_t i = 0; i < profiles_.size(); ++i) {
      if (profiles_[i] == name) return i;
    }
    return std::nullopt;
  }
  size_t Primary(std::span<const ProfileResult> results) const noexcept override {
    size_t at = 0;
    while (at < results.size() && !results[at].ran) ++at;
    return at;
  }

 private:
  std::string header_;
  std::string default_;
  std::vector<std::string> profiles_;
};

}  // namespace

std::unique_ptr<Plugin> MakeHeaderProfileHandler(Build& build) {
  return std::make_unique<HeaderProfileHandler>(build);
}

}  // namespace fairway::scheduling
