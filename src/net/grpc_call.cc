// What services call.
#include <memory>
#include <string>
#include <utility>

#include "net/grpc_connection.h"

namespace fairway::net {
namespace {

// Counts as long as it lives, on the loop of its connection.
class CountedBlock final : public SharedBytes::Block {
 public:
  CountedBlock(std::string bytes, std::shared_ptr<GrpcAccount> account)
      : Block(std::move(bytes)), account_(std::move(account)) {
    account_->shared += this->bytes.capacity();
  }
  ~CountedBlock() override { account_->shared -= bytes.capacity(); }

 private:
  std::shared_ptr<GrpcAccount> account_;
};

}  // namespace

void GrpcCall::Write(std::string_view bytes) {
  if (finished_ || state_ == nullptr || state_->connection == nullptr || bytes.empty()) return;
  state_->answer.Copy(bytes);
  state_->connection->Write(*state_);
}

void GrpcCall::Write(const SharedBytes& bytes) {
  if (finished_ || state_ == nullptr || state_->connection == nullptr || bytes.empty()) return;
  state_->answer.Append(bytes);
  state_->connection->Write(*state_);
}

SharedBytes GrpcCall::Share(std::string bytes) {
  if (state_ == nullptr || state_->connection == nullptr) return SharedBytes(std::move(bytes));
  return SharedBytes(std::make_shared<const CountedBlock>(std::move(bytes), state_->connection->account_));
}

void GrpcCall::Finish(GrpcStatus status, std::string_view message) {
  if (finished_ || state_ == nullptr || state_->connection == nullptr) return;
  state_->connection->Finish(*state_, status, message);
}

Loop& GrpcCall::loop() const {
  FAIRWAY_CHECK(state_ != nullptr);
  return state_->loop;
}

bool GrpcCall::Reserve(size_t bytes) {
  if (finished_ || state_ == nullptr || state_->connection == nullptr) return false;
  return state_->connection->Reserve(*state_, bytes);
}

void GrpcCall::Release(size_t bytes) {
  if (state_ == nullptr || state_->connection == nullptr) return;
  state_->connection->Release(*state_, bytes);
}

}  // namespace fairway::net
