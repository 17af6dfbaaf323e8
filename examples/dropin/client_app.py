import torch
from flwr.clientapp import ClientApp
from hospital import local_images, make_model

from flwr_afuic.clients import SiteData, TorchClient


class Hospital(TorchClient):
    def data(self): return SiteData(*local_images(self.context))
    def model(self): return make_model()
    def optimizer(self, model): return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


app = ClientApp(lambda context: Hospital.from_context(context).to_client())
