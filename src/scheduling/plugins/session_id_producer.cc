// session-id-producer: a session's id as requests say it: header `headerName`, or cookie `cookieName`; one of
// the two. Source: the reference's producer of this name (llm-d router).
#include "base/strings.h"
#include "scheduling/plugin.h"

namespace fairway::scheduling {
namespace {

class SessionIdProducer final : public Plugin, public RequestText {
 public:
  explicit SessionIdProducer(Build& build)
      : cookie_(base::Trim(build.Text("cookieName", "", "Cookie with a session's id"))) {
    const std::string text = build.Text("headerName", "", "Header with it; one of both is required");
    const std::string_view header = base::Trim(text);
    if (header.empty() == cookie_.empty()) {
      build.Error("headerName", "want one of headerName and cookieName");
    } else {
      header_ = build.WantsHeader(header.empty() ? "cookie" : header);
    }
  }
  std::string_view TextOf(const Facts& request) const noexcept override {
    const std::string_view text = request.header(header_);
    return base::Trim(cookie_.empty() ? text : CookieOf(text));
  }

 private:
  std::string_view CookieOf(std::string_view cookies) const noexcept {
    while (!cookies.empty()) {
      const size_t end = std::min(cookies.find(';'), cookies.size());
      const std::string_view pair = base::Trim(cookies.substr(0, end));
      const size_t equals = pair.find('=');
      if (equals != std::string_view::npos && pair.substr(0, equals) == cookie_)
        return pair.substr(equals + 1);
      cookies.remove_prefix(std::min(end + 1, cookies.size()));
    }
    return {};
  }

  std::string cookie_;
  std::string header_;
};

}  // namespace

std::unique_ptr<Plugin> MakeSessionIdProducer(Build& build) {
  return std::make_unique<SessionIdProducer>(build);
}

}  // namespace fairway::scheduling
