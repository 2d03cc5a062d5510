#include "sources/files/name_resolver.h"

#include <algorithm>
#include <boost/asio/ip/tcp.hpp>
#include <set>
#include <utility>

namespace fairway::sources {

using boost::asio::ip::tcp;

struct NameResolver::Impl : std::enable_shared_from_this<NameResolver::Impl> {
  Impl(net::Loop& loop, const base::Log& l, Changed c)
      : resolver(loop.io()), log(l), changed(std::move(c)), timer(loop) {}

  void LookUp(const std::string& name) {
    // The resolver's own thread works through them one after the other; a name is not queued twice.
    if (!pending.insert(name).second) return;
    resolver.async_resolve(name, "", [weak = weak_from_this(), name](const auto& error, const auto& results) {
      const auto self = weak.lock();
      if (self == nullptr) return;
      self->pending.erase(name);
      if (!self->wanted.contains(name)) return;
      if (error || results.empty()) {
        if (self->failing.insert(name).second) {
          self->log.Warn("endpoint's host name has no address",
                         {{"name", name},
                          {"error", error ? error.message() : "no address"},
                          {"serving", self->found.contains(name) ? "its last address" : "without it"}});
        }
        return;
      }
      self->failing.erase(name);
      const std::string address = results.begin()->endpoint().address().to_string();
      auto [slot, fresh] = self->found.try_emplace(name, address);
      if (!fresh && slot->second == address) return;
      slot->second = address;
      self->changed(self->found);
    });
  }

  tcp::resolver resolver;
  const base::Log& log;
  Changed changed;
  net::Timer timer;
  Addresses found;
  std::set<std::string> wanted, pending, failing;
};

NameResolver::NameResolver(net::Loop& loop, const base::Log& log, Changed changed, base::Nanos interval)
    : impl_(std::make_shared<Impl>(loop, log, std::move(changed))) {
  impl_->timer.Every(interval, [impl = impl_.get()] {
    for (const auto& name : impl->wanted) impl->LookUp(name);
  });
}

NameResolver::~NameResolver() {
  impl_->timer.Cancel();
  impl_->resolver.cancel();
}

void NameResolver::Watch(std::vector<std::string> names) {
  impl_->wanted = {names.begin(), names.end()};
  std::erase_if(impl_->found, [this](const auto& entry) { return !impl_->wanted.contains(entry.first); });
  for (const auto& name : impl_->wanted) {
    if (!impl_->found.contains(name)) impl_->LookUp(name);
  }
}

const NameResolver::Addresses& NameResolver::addresses() const { return impl_->found; }

}  // namespace fairway::sources
