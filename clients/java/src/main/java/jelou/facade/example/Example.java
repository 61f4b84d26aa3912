package jelou.facade.example;

import static java.nio.charset.StandardCharsets.UTF_8;

import io.grpc.Channel;
import io.grpc.InsecureChannelCredentials;
import io.grpc.StatusException;
import java.io.PrintStream;
import java.util.ArrayList;
import java.util.List;
import java.util.UUID;
import java.util.concurrent.TimeUnit;
import jelou.facade.client.FacadeChannel;
import jelou.facade.client.Failure;
import jelou.facade.v1.BatchItem;
import jelou.facade.v1.BatchResult;
import jelou.facade.v1.BatchServiceGrpc;
import jelou.facade.v1.BatchServiceGrpc.BatchServiceBlockingV2Stub;
import jelou.facade.v1.BatchSpec;
import jelou.facade.v1.ErrorReason;
import jelou.facade.v1.Message;
import jelou.facade.v1.MessageServiceGrpc;
import jelou.facade.v1.MessageServiceGrpc.MessageServiceBlockingV2Stub;
import jelou.facade.v1.NotificationServiceGrpc;
import jelou.facade.v1.NotificationServiceGrpc.NotificationServiceBlockingV2Stub;
import jelou.facade.v1.Send;
import jelou.facade.v1.SendMessageRequest;
import jelou.facade.v1.SendNotificationRequest;
import jelou.facade.v1.SendOptions;
import jelou.facade.v1.StreamBatchRequest;
import jelou.facade.v1.StreamBatchRequest.Open;
import jelou.facade.v1.StreamBatchRequest.Seal;
import jelou.facade.v1.TemplateMessage;
import jelou.facade.v1.TextContent;

/** Sends a message, a notification and a batch, and does what a program should when something goes wrong. */
public final class Example {
  private static final String BOT = "demo";
  private static final String LUCIA = "593991234567"; // wrote to the bot today
  private static final String UNKNOWN = "593990000001"; // never did
  private static final int ITEMS = 8;
  private static final PrintStream OUT = new PrintStream(System.out, true, UTF_8);

  private Example() {}

  public static void main(String[] args) throws Exception {
    if (args.length != 1) {
      System.err.println("usage: Example HOST:PORT");
      System.exit(2);
    }
    var channel = FacadeChannel.builder(args[0], InsecureChannelCredentials.create()).build();
    try {
      run(channel);
    } finally {
      channel.shutdownNow().awaitTermination(5, TimeUnit.SECONDS);
    }
  }

  private static void run(Channel channel) throws Exception {
    var messages = MessageServiceGrpc.newBlockingV2Stub(channel);
    sendSafely(messages);
    notify(NotificationServiceGrpc.newBlockingV2Stub(channel));
    readError(messages);
    sendPatiently(messages);
    streamBatch(BatchServiceGrpc.newBlockingV2Stub(channel));
  }

  private static SendMessageRequest.Builder text(String user, String text) {
    return SendMessageRequest.newBuilder().setBotId(BOT).setUserId(user).setMessage(textMessage(text));
  }

  private static Message textMessage(String text) {
    return Message.newBuilder().setText(TextContent.newBuilder().setText(text)).build();
  }

  /** Gives the send an id of the caller's own, so that it can be repeated even after a crash. */
  private static void sendSafely(MessageServiceBlockingV2Stub messages) throws StatusException {
    var request = text(LUCIA, "Su pedido 8841 salió de bodega.").setRequestId("order-8841").build();
    var first = messages.sendMessage(request).getSend();
    OUT.println("message: " + first.getState());
    var again = messages.sendMessage(request).getSend();
    if (again.getSendId().equals(first.getSendId())) {
      OUT.println("the same request_id again: the same send");
    }
  }

  private static void notify(NotificationServiceBlockingV2Stub notifications) throws StatusException {
    var template = TemplateMessage.newBuilder()
        .setElementName("order_ready").setLanguage("es").addDestinations(LUCIA).addParameters("Lucía").addParameters("991");
    var send = notifications.sendNotification(SendNotificationRequest.newBuilder().setBotId(BOT).setNotification(template).build()).getSend();
    OUT.printf("notification: %s, %d recipient%n", send.getState(), send.getNotificationsCount());
  }

  /** Decides by the reason: the 24-hour window of this user is closed, so only a notification can reach him. */
  private static void readError(MessageServiceBlockingV2Stub messages) throws StatusException {
    try {
      messages.sendMessage(text(UNKNOWN, "¿Cómo le fue con su compra?").build());
    } catch (StatusException e) {
      var failure = Failure.of(e);
      if (!failure.reason().equals(ErrorReason.SESSION_WINDOW_CLOSED.name())) {
        throw e;
      }
      OUT.printf("refused: %s %s by %s%n", failure.code(), failure.reason(), failure.domain());
    }
  }

  /** Has one second for a send behind twenty others. The server says at once that it is too little, and when to come back. */
  private static void sendPatiently(MessageServiceBlockingV2Stub messages) throws Exception {
    for (int i = 0; i < 20; i++) {
      messages.sendMessage(text(LUCIA, "Antes " + i).setMode(SendOptions.Mode.QUEUE).build());
    }
    var request = text(LUCIA, "Su turno es el siguiente.").setRequestId(UUID.randomUUID().toString()).build(); // one id for all attempts
    for (int attempt = 1; ; attempt++) {
      try {
        var answer = messages.withDeadlineAfter(1, TimeUnit.SECONDS).sendMessage(request);
        OUT.println("after the wait: " + answer.getSend().getState());
        return;
      } catch (StatusException e) {
        var failure = Failure.of(e);
        var delay = failure.retryDelay().orElseThrow(() -> e);
        if (attempt == 1) {
          OUT.printf("too late: %s %s, retry after a wait%n", failure.code(), failure.reason());
        }
        Thread.sleep(delay.toMillis());
      }
    }
  }

  /** Makes the n-th item from 1; the fourth is blank and costs itself only. */
  private static StreamBatchRequest item(int n) {
    var text = n == 4 ? " " : "Esta semana los envíos son gratis (%d).".formatted(n);
    return StreamBatchRequest.newBuilder().setItem(BatchItem.newBuilder().setSequence(n).setUserId(LUCIA).setMessage(textMessage(text))).build();
  }

  /** All that is needed to go on after a cut: a program that may crash stores batch and cursor. */
  private static final class Place {
    private final List<String> failed = new ArrayList<>();
    private String batchId = "";
    private String cursor = "";

    void take(BatchResult result) {
      cursor = result.getCursor();
      var send = result.getSend();
      if (send.getState() != Send.State.SENT) {
        failed.add("item %d: %s %s".formatted(send.getSequence(), send.getState(), send.getErrorReason()));
      }
    }
  }

  /** Uploads and reads results at the same time, loses the stream on the way, and goes on where it was. */
  private static void streamBatch(BatchServiceBlockingV2Stub batches) throws Exception {
    var place = uploadHalf(batches);
    OUT.println("batch: left after item 5");
    var stream = batches.streamBatch();
    stream.write(StreamBatchRequest.newBuilder().setOpen(Open.newBuilder().setBatchId(place.batchId).setAfterCursor(place.cursor)).build());
    for (var event = stream.read(); event != null; event = stream.read()) {
      switch (event.getEventCase()) {
        case OPENED -> {
          OUT.println("batch: reopened at item " + event.getOpened().getNextSequence());
          for (int n = event.getOpened().getNextSequence(); n <= ITEMS; n++) {
            stream.write(item(n));
          }
          stream.write(StreamBatchRequest.newBuilder().setSeal(Seal.newBuilder().setItemCount(ITEMS)).build());
          stream.halfClose();
        }
        case PROGRESS -> {
          var counts = event.getProgress().getBatch().getCounts();
          System.err.printf("%d of %d sent%n", counts.getSent(), counts.getAccepted());
        }
        case RESULT -> place.take(event.getResult());
        case END -> {
          place.failed.forEach(OUT::println);
          var batch = event.getEnd().getBatch();
          var counts = batch.getCounts();
          OUT.printf("batch: %s, %d accepted, %d sent, %d failed%n", batch.getState(), counts.getAccepted(), counts.getSent(), counts.getFailed());
        }
        default -> {} // an ack, or what a newer server says
      }
    }
  }

  /** Leaves once five items are stored and two have results, as a crash would. */
  private static Place uploadHalf(BatchServiceBlockingV2Stub batches) throws Exception {
    var stream = batches.streamBatch();
    var spec = BatchSpec.newBuilder().setBotId(BOT).setDisplayName("Envíos gratis");
    stream.write(StreamBatchRequest.newBuilder().setOpen(Open.newBuilder().setSpec(spec)).build());
    for (int n = 1; n <= 5; n++) {
      stream.write(item(n));
    }
    var place = new Place();
    for (int stored = 0, results = 0; stored < 5 || results < 2; ) {
      var event = stream.read();
      if (event == null) {
        throw new IllegalStateException("the batch ended early");
      }
      switch (event.getEventCase()) {
        case OPENED -> place.batchId = event.getOpened().getBatchId();
        case ACK -> stored = event.getAck().getThroughSequence();
        case RESULT -> {
          place.take(event.getResult());
          results++;
        }
        default -> {}
      }
    }
    stream.cancel("left", null);
    return place;
  }
}
