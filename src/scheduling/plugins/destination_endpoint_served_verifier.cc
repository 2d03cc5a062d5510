// destination-endpoint-served-verifier: answers name in kServedHeader who gave them, as far as the gateway says it; for
// conformance tests of gateways. Source: the reference's plugin of this name (llm-d router).
#include "scheduling/plugin.h"

namespace fairway::scheduling {
namespace {

class ServedVerifier final : public Plugin, public ServedTeller {};

}  // namespace

std::unique_ptr<Plugin> MakeServedVerifier(Build&) { return std::make_unique<ServedVerifier>(); }

}  // namespace fairway::scheduling
