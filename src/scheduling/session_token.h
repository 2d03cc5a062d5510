// What a header of an answer says of the endpoint that served it (SessionHeader), and requests say to come to
// the same one: base64 of "namespace/name", or of "namespace/name:port" where a Pod has several endpoints. As
// the reference's session affinity (llm-d router), whose names of such endpoints are "name-rank-N".
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "fleet/snapshot.h"

namespace fairway::scheduling {

std::string SessionToken(const fleet::PoolSnapshot& pool, uint32_t endpoint);
// The name that it says; "" where it is no token or longer than `memory`, where the name is written to.
std::string_view ReadSessionToken(std::string_view token, std::span<char> memory) noexcept;

}  // namespace fairway::scheduling
