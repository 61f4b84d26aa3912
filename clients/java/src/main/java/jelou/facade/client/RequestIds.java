package jelou.facade.client;

import io.grpc.CallOptions;
import io.grpc.Channel;
import io.grpc.ClientCall;
import io.grpc.ClientInterceptor;
import io.grpc.ForwardingClientCall.SimpleForwardingClientCall;
import io.grpc.MethodDescriptor;
import java.util.UUID;
import jelou.facade.v1.CreateBatchRequest;
import jelou.facade.v1.ReplayBatchRequest;
import jelou.facade.v1.SendMessageRequest;
import jelou.facade.v1.SendNotificationRequest;
import jelou.facade.v1.StreamBatchRequest;

/** Gives every send that has none a request_id of its own. Dry runs take none. */
final class RequestIds implements ClientInterceptor {
  @Override
  public <Q, A> ClientCall<Q, A> interceptCall(MethodDescriptor<Q, A> method, CallOptions options, Channel next) {
    return new SimpleForwardingClientCall<>(next.newCall(method, options)) {
      @Override
      @SuppressWarnings("unchecked") // a message comes back as what it was
      public void sendMessage(Q message) {
        super.sendMessage((Q) identified(message));
      }
    };
  }

  static Object identified(Object request) {
    if (request instanceof SendMessageRequest r && !r.getValidateOnly() && r.getRequestId().isEmpty()) {
      return r.toBuilder().setRequestId(newId()).build();
    }
    if (request instanceof SendNotificationRequest r && !r.getValidateOnly() && r.getRequestId().isEmpty()) {
      return r.toBuilder().setRequestId(newId()).build();
    }
    if (request instanceof ReplayBatchRequest r && r.getRequestId().isEmpty()) {
      return r.toBuilder().setRequestId(newId()).build();
    }
    if (request instanceof CreateBatchRequest r && r.hasSpec() && !r.getValidateOnly() && r.getSpec().getRequestId().isEmpty()) {
      var builder = r.toBuilder();
      builder.getSpecBuilder().setRequestId(newId());
      return builder.build();
    }
    if (request instanceof StreamBatchRequest r && r.getOpen().hasSpec() && r.getOpen().getSpec().getRequestId().isEmpty()) {
      var builder = r.toBuilder();
      builder.getOpenBuilder().getSpecBuilder().setRequestId(newId());
      return builder.build();
    }
    return request;
  }

  private static String newId() {
    return UUID.randomUUID().toString();
  }
}
