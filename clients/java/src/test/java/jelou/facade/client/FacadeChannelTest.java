package jelou.facade.client;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.grpc.Context;
import io.grpc.ManagedChannel;
import io.grpc.Server;
import io.grpc.Status;
import io.grpc.StatusException;
import io.grpc.inprocess.InProcessChannelBuilder;
import io.grpc.inprocess.InProcessServerBuilder;
import io.grpc.stub.StreamObserver;
import java.util.List;
import java.util.Set;
import java.util.concurrent.CopyOnWriteArrayList;
import java.util.concurrent.TimeUnit;
import jelou.facade.v1.CancelSendRequest;
import jelou.facade.v1.CancelSendResponse;
import jelou.facade.v1.MessageServiceGrpc;
import jelou.facade.v1.SendMessageRequest;
import jelou.facade.v1.SendMessageResponse;
import jelou.facade.v1.SendServiceGrpc;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;

/** Calls a server that is not there at first. */
class FacadeChannelTest {
  private final List<String> ids = new CopyOnWriteArrayList<>();
  private final List<Long> seconds = new CopyOnWriteArrayList<>();
  private Server server;
  private ManagedChannel channel;

  @BeforeEach
  void start() throws Exception {
    var messages = new MessageServiceGrpc.MessageServiceImplBase() {
      @Override
      public void sendMessage(SendMessageRequest request, StreamObserver<SendMessageResponse> answers) {
        ids.add(request.getRequestId());
        seconds.add(Context.current().getDeadline().timeRemaining(TimeUnit.SECONDS));
        if (ids.size() < 3) {
          answers.onError(Status.UNAVAILABLE.asException());
          return;
        }
        answers.onNext(SendMessageResponse.getDefaultInstance());
        answers.onCompleted();
      }
    };
    var sends = new SendServiceGrpc.SendServiceImplBase() {
      @Override
      public void cancelSend(CancelSendRequest request, StreamObserver<CancelSendResponse> answers) {
        ids.add(request.getSendId());
        answers.onError(Status.UNAVAILABLE.asException());
      }
    };
    var name = InProcessServerBuilder.generateName();
    server = InProcessServerBuilder.forName(name).addService(messages).addService(sends).build().start();
    channel = FacadeChannel.configure(InProcessChannelBuilder.forName(name)).build();
  }

  @AfterEach
  void stop() throws Exception {
    channel.shutdownNow().awaitTermination(5, TimeUnit.SECONDS);
    server.shutdownNow().awaitTermination(5, TimeUnit.SECONDS);
  }

  @Test
  void allAttemptsOfASendHaveOneIdAndADeadline() throws Exception {
    MessageServiceGrpc.newBlockingV2Stub(channel).sendMessage(SendMessageRequest.getDefaultInstance());
    assertEquals(3, ids.size());
    assertEquals(1, Set.copyOf(ids).size());
    assertEquals(36, ids.get(0).length());
    assertTrue(seconds.get(0) >= 25 && seconds.get(0) <= 30, "%s s are left".formatted(seconds));
  }

  @Test
  void whatIsNotSafeToRepeatIsNotRepeated() {
    var error = assertThrows(StatusException.class, () -> SendServiceGrpc.newBlockingV2Stub(channel).cancelSend(CancelSendRequest.getDefaultInstance()));
    assertEquals(Status.Code.UNAVAILABLE, error.getStatus().getCode());
    assertEquals(1, ids.size());
  }
}
