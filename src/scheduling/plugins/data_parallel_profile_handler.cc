// data-parallel-profile-handler: the only profile decides. A server's ranks share its first port, and a
// side-car there sends on: destinations get `primaryPort` (8000), and the header x-data-parallel-host-port
// tells the chosen rank's own address. Source: the reference's handler of this name (llm-d router).
#include "scheduling/plugin.h"

namespace fairway::scheduling {
namespace {

class DataParallelProfileHandler final : public Plugin, public ProfileHandler {
 public:
  explicit DataParallelProfileHandler(Build& build)
      : port_(static_cast<uint16_t>(build.Integer(
            "primaryPort", 8000, 1, 65535, "Port of the endpoint that stands for all ranks of its Pod"))) {}

  std::optional<size_t> Next(const Context&, std::span<const ProfileResult> results) const noexcept override {
    if (results[0].ran) return std::nullopt;
    return 0;
  }
  size_t Primary(std::span<const ProfileResult>) const noexcept override { return 0; }
  Port PortOfAll() const noexcept override { return {port_, "x-data-parallel-host-port"}; }

 private:
  uint16_t port_;
};

}  // namespace

std::unique_ptr<Plugin> MakeDataParallelProfileHandler(Build& build) {
  return std::make_unique<DataParallelProfileHandler>(build);
}

}  // namespace fairway::scheduling
