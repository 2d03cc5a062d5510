// agent-identity: the session's id of coding agents: the first header that a request has of
// `additionalSessionHeaders` and x-claude-code-session-id, x-session-affinity, session-id, session_id.
// It is the fairness id of requests without one. Source: the reference's plugin of this name (llm-d router).
#include <vector>

#include "scheduling/plugin.h"

namespace fairway::scheduling {
namespace {

class AgentIdentity final : public Plugin, public RequestText {
 public:
  explicit AgentIdentity(Build& build) {
    for (const std::string& header :
         build.Texts("additionalSessionHeaders",
                     "Headers that name an agent's session, looked for before the well-known ones"))
      headers_.push_back(build.WantsHeader(header));
    for (const char* header : {"x-claude-code-session-id", "x-session-affinity", "session-id", "session_id"})
      headers_.push_back(build.WantsHeader(header));
  }
  std::string_view TextOf(const Facts& request) const noexcept override {
    for (const std::string& header : headers_) {
      if (const std::string_view text = request.header(header); !text.empty()) return text;
    }
    return {};
  }
  bool names_flow() const noexcept override { return true; }

 private:
  std::vector<std::string> headers_;
};

}  // namespace

std::unique_ptr<Plugin> MakeAgentIdentity(Build& build) { return std::make_unique<AgentIdentity>(build); }

}  // namespace fairway::scheduling
